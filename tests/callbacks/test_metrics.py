"""The file of metrics: its format by the words of its specification, and what it says as a run goes on and ends."""

import re
import time
from pathlib import Path

import pytest
from small_runs import fit, matching

from ldd.callbacks import Metrics
from ldd.data import DistillationData
from ldd.errors import UserError
from ldd.priors import PixelPrior

SAMPLE = re.compile(r'(latentdd_[a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+)\} (\S+)')


def read(path):
    """Samples by name and labels other than the run's; every other line is a comment of the format."""
    found, kinds = {}, {}
    for line in path.read_text().splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            kinds[name] = kind
        elif not line.startswith("# HELP"):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            own = dict(re.findall(r'([a-z]+)="((?:[^"\\]|\\.)*)"', labels))
            assert own.pop("run")
            assert own.pop("host")
            found[name, *own.values()] = float(value)
            assert kinds[name] == "gauge"
    return found


class Looking(Metrics):
    """Reads what it has just written."""

    seen: list

    def on_train_batch_end(self, trainer, *rest):
        super().on_train_batch_end(trainer, *rest)
        self.seen.append(read(Path(self.file)))


def run(callback, folder, steps):
    return fit(
        PixelPrior(32), matching(), folder, steps, DistillationData(subset=["0", "1"]), callbacks=(callback,)
    )


def test_what_a_run_says_on_its_way_and_at_its_end(tmp_path):
    file = tmp_path / "a.prom"
    metrics = Looking(str(file), every_seconds=1e-9)
    metrics.seen = []
    before = time.time()
    run(metrics, tmp_path / 'a "run" \\', 4)
    assert [one["latentdd_step",] for one in metrics.seen] == [1, 2, 3, 4]
    for one in metrics.seen:
        assert one["latentdd_max_steps",] == 4
        assert one["latentdd_steps_per_second",] > 0
        left = (4 - one["latentdd_step",]) / one["latentdd_steps_per_second",]
        assert one["latentdd_seconds_left",] == pytest.approx(left, rel=1e-9)
        assert one["latentdd_state", "training"] == 1
    end = read(file)
    states = {key[1]: value for key, value in end.items() if key[0] == "latentdd_state"}
    assert states == {"training": 0, "evaluating": 0, "finished": 1, "stopped": 0, "failed": 0}
    assert ("latentdd_steps_per_second",) not in end
    assert 2**26 < end["latentdd_memory_bytes", "process"] < 2**36
    assert before <= end["latentdd_updated_seconds",] <= time.time()


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, "stopped"), (ZeroDivisionError, "failed")])
def test_how_a_run_ended(tmp_path, error, state):
    class Ends(Metrics):
        def on_train_batch_end(self, trainer, *rest):
            super().on_train_batch_end(trainer, *rest)
            raise error

    metrics = Ends(str(tmp_path / "a.prom"))
    with pytest.raises((SystemExit, error)):
        run(metrics, tmp_path / "run", 4)
    end = read(tmp_path / "a.prom")
    assert end["latentdd_state", state] == 1
    assert end["latentdd_step",] == 1


def test_between_two_writings_lies_the_time_that_was_asked_for(tmp_path):
    metrics = Looking(str(tmp_path / "a.prom"), every_seconds=1e6)
    metrics.seen = []
    run(metrics, tmp_path / "run", 3)
    assert [one["latentdd_step",] for one in metrics.seen] == [0, 0, 0]


def test_a_folder_that_goes_does_not_stop_the_run(tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    metrics = Metrics(str(folder / "a.prom"), every_seconds=1e-9)
    folder.rmdir()
    folder.write_text("a file")
    assert run(metrics, tmp_path / "run", 2)
    assert folder.read_text() == "a file"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"file": "a.txt"}, r"metrics.file \(a.txt\) must end in .prom"),
        ({"file": "/nowhere/a.prom"}, "its folder does not exist"),
        ({"every_seconds": 0}, r"metrics.every_seconds \(0\) must be a positive"),
        ({"every_seconds": float("nan")}, "must be a positive"),
        ({"every_seconds": float("inf")}, "must be a positive"),
    ],
)
def test_refusals(arguments, said):
    with pytest.raises(UserError, match=said):
        Metrics(**arguments)
