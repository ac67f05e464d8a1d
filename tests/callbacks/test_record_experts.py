"""Experts recorded by the run itself: what is missing and no more, for the run's own data and network."""

from functools import partial

import pytest
from fsspec import filesystem
from small_runs import fit

from ldd.callbacks import RecordExperts
from ldd.data import DistillationData
from ldd.disk import stores
from ldd.errors import UserError
from ldd.experts.recording import cost_of, record_experts
from ldd.experts.trajectories import Trajectories
from ldd.networks import ConvNet
from ldd.objectives import Alternating, DistributionMatching, MaximumMeanDiscrepancy, TrajectoryMatching
from ldd.priors import PixelPrior

TINY = partial(ConvNet, depth=2, width=4)


@pytest.fixture(scope="module")
def data():
    data = DistillationData(subset=["0", "1", "2"])
    data.setup()
    return data


def both(folder, **arguments):
    rates = {"lr_latents": 1e-3, "lr_conditioning": 1e-3, "network": TINY}
    first = TrajectoryMatching(str(folder), syn_steps=1, max_start_epoch=1, **rates | arguments)
    return Alternating([first, MaximumMeanDiscrepancy(trajectories=str(folder), samples=2, **rates)])


def run(data, tmp_path, objective, callback, steps=1):
    return fit(
        PixelPrior(32), objective, tmp_path / "run", steps, data, callbacks=(callback,), images_per_class=2
    )


def test_a_run_records_what_its_objectives_read(data, tmp_path, capsys):
    folder = tmp_path / "experts"
    callback = RecordExperts(num_experts=2, batch_size=64, learning_rate=0.05)
    model = run(data, tmp_path, both(folder), callback)
    (recording,) = [Trajectories.open(path) for path in folder.iterdir()]
    charged = model.distilled_set().manifest["ledger"]["stages"]["experts"]
    batches = -(-len(data.core_set) // 64)
    assert charged["steps"] == 2 * 2 * batches  # one recording, which both objectives read
    assert charged["seconds"] == pytest.approx(cost_of(recording)["seconds"], rel=1e-9)
    assert charged["seconds"] > 0
    assert (recording.num_experts, recording.training.epochs) == (2, 2)  # start epoch 0, two epochs on
    reference = record_experts(
        data,
        TINY,
        2,
        epochs=2,
        batch_size=64,
        learning_rate=0.05,
        out=str(tmp_path / "other"),
        progress=False,
    )
    assert Trajectories.open(reference).read(1, [2]).equal(recording.read(1, [2]))
    capsys.readouterr()
    fit(PixelPrior(32), both(folder), tmp_path / "again", 1, data, callbacks=(callback,), images_per_class=2)
    assert "experts are there" not in capsys.readouterr().out  # found, so nothing is recorded


def test_longer_experts_beside_short_ones_are_the_run_s(data, tmp_path):
    """Two recordings of too few epochs lie in the folder: the run records its own and reads these."""
    folder = tmp_path / "experts"
    short = [
        record_experts(data, TINY, 1, epochs=1, seed=seed, out=str(folder), progress=False) for seed in (0, 1)
    ]
    model = run(data, tmp_path, both(folder).objectives[0], RecordExperts(num_experts=1, batch_size=32))
    (own,) = [Trajectories.open(path) for path in folder.iterdir() if path not in short]
    assert (own.training.epochs, own.training.batch_size) == (2, 32)
    steps = 2 * -(-len(data.core_set) // 32)
    assert model.distilled_set().manifest["ledger"]["stages"]["experts"]["steps"] == steps


@pytest.mark.parametrize("number", [1, 2], ids=["enough", "too few"])
@pytest.mark.parametrize(
    ("setting", "given", "there"),
    [
        ("batch_size", 32, "256"),
        ("learning_rate", 0.1, "0.01"),
        ("momentum", 0.9, "0.0"),
        ("weight_decay", 1e-3, "0.0"),
        ("augmentation", ["flip"], "'color', .*"),
        ("seed", 1, "0"),
        ("epochs", 3, "2"),
    ],
)
def test_experts_that_were_trained_in_another_way_are_refused(data, tmp_path, setting, given, there, number):
    folder = tmp_path / "experts"
    objective = both(folder, num_experts=number).objectives[0]
    record_experts(data, TINY, 1, epochs=2, out=str(folder), progress=False)
    before = sorted(folder.rglob("*"))
    message = rf"experts.{setting} \(.*\): the experts in .* were recorded with \(?{there}.*num_experts to 0"
    with pytest.raises(UserError, match=message):
        run(data, tmp_path, objective, RecordExperts(num_experts=number, **{setting: given}))
    assert sorted(folder.rglob("*")) == before
    objective = both(folder).objectives[0]
    run(data, tmp_path / "as they are", objective, RecordExperts(num_experts=0, **{setting: given}))


def test_more_experts_than_are_there_are_recorded_and_fewer_are_refused(data, tmp_path):
    folder = tmp_path / "experts"
    for count in (1, 3):
        run(data, tmp_path / str(count), both(folder).objectives[0], RecordExperts(count))
    (recording,) = [Trajectories.open(path) for path in folder.iterdir()]
    assert recording.num_experts == 3
    assert all(recording.is_whole(expert) for expert in range(3))
    with pytest.raises(
        UserError, match=r"experts.num_experts \(2\): .* holds 3; set it to that, or objective"
    ):
        run(data, tmp_path / "2", both(folder).objectives[0], RecordExperts(2))
    run(data, tmp_path / "2", both(folder, num_experts=2).objectives[0], RecordExperts(2))


@pytest.mark.parametrize("lost", [0, 1], ids=["whole", "stopped before its first"])
@pytest.mark.parametrize("own", [False, True], ids=["among others", "by its own folder"])
def test_more_experts_are_recorded_into_the_recording_that_is_there(data, tmp_path, lost, own):
    """With its epochs, of which the run reads fewer."""
    folder = tmp_path / "experts"
    made = record_experts(data, TINY, 1, epochs=3, out=str(folder), progress=False)
    for expert in range(lost):
        Trajectories.open(made).path(expert).unlink()
    run(data, tmp_path, both(made if own else folder).objectives[0], RecordExperts(2))
    (recording,) = [Trajectories.open(path.parent) for path in folder.rglob("index.json")]
    assert (recording.folder, recording.num_experts, recording.training.epochs) == (made, 2, 3)


def test_none_are_recorded_beside_a_renamed_recording(data, tmp_path):
    made = record_experts(data, TINY, 1, epochs=2, out=str(tmp_path / "experts"), progress=False)
    renamed = made.rename(made.with_name("mine"))
    run(data, tmp_path / "1", both(renamed).objectives[0], RecordExperts(1))
    with pytest.raises(UserError, match=r"mine\) has not all of the 2 experts .* give it back its name"):
        run(data, tmp_path / "2", both(renamed).objectives[0], RecordExperts(2))
    assert list(renamed.parent.rglob("index.json")) == [renamed / "index.json"]


@pytest.mark.parametrize(
    ("number", "damage", "message"),
    [(2, False, "holds several that fit; name one of"), (1, True, "delete .* and record the experts anew")],
)
def test_what_recording_cannot_mend_is_refused_before_it(data, tmp_path, number, damage, message):
    folder = tmp_path / "experts"
    for seed in range(number):
        record_experts(data, TINY, 1, epochs=2, seed=seed, out=str(folder), progress=False)
    if damage:
        next(folder.glob("*/index.json")).write_text("{")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=message):
        run(data, tmp_path, both(folder).objectives[0], RecordExperts(num_experts=1, seed=2))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("order", [1, -1], ids=["the longer reader first", "the shorter first"])
def test_a_recording_that_one_of_two_readers_finds_too_short_is_refused_before_another_is_made(
    data, tmp_path, order
):
    """Beside a longer one it would be the second that the shorter reader finds. Two folders hold one each."""
    folder = tmp_path / "experts"
    record_experts(data, TINY, 1, epochs=1, out=str(folder), progress=False)
    before = sorted(folder.rglob("*"))
    objectives = list(both(folder).objectives)[::order]
    with pytest.raises(
        UserError, match=r"has 1 epochs, which another reader .* epoch 2; name another folder, or"
    ):
        run(data, tmp_path, Alternating(objectives), RecordExperts(num_experts=1))
    assert sorted(folder.rglob("*")) == before
    longer = both(tmp_path / "longer").objectives[0]
    run(
        data,
        tmp_path / "two",
        Alternating([longer, both(folder).objectives[1]]),
        RecordExperts(num_experts=1),
    )
    assert sorted(folder.rglob("*")) == before
    assert [path.name for path in (tmp_path / "longer").rglob("*.safetensors")] == [
        "expert-00000.safetensors"
    ]


def test_none_are_recorded_into_the_copy_of_a_store(data, tmp_path, monkeypatch):
    """It is never sent, and made equal to the store when it is next read; what is there is read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = "memory://bucket/experts"
    made = record_experts(data, TINY, 1, epochs=2, out=str(tmp_path / "experts"), progress=False)
    filesystem("memory").put(f"{made}/", f"{url}/", recursive=True)
    copy = stores.fetched(url, "objective.trajectories")
    before = sorted(copy.rglob("*"))
    with pytest.raises(
        UserError, match=rf"objective.trajectories \({url}\) has not all .* experts --out {url}"
    ):
        run(data, tmp_path / "2", both(copy).objectives[0], RecordExperts(2))
    assert sorted(copy.rglob("*")) == before
    run(data, tmp_path / "1", both(copy).objectives[0], RecordExperts(1))


def test_nothing_to_do(data, tmp_path):
    run(data, tmp_path, DistributionMatching(real_batch=2, network=TINY), RecordExperts())
    run(data, tmp_path, both(tmp_path / "experts"), RecordExperts(num_experts=1), steps=0)
    assert not (tmp_path / "experts").exists()


def test_refuses(data, tmp_path):
    with pytest.raises(UserError, match=r"experts.num_experts \(-1\) must be at least 0"):
        RecordExperts(num_experts=-1)
    with pytest.raises(UserError, match=r"experts.num_experts \(2\): DistributionMatching reads no experts"):
        run(data, tmp_path, DistributionMatching(real_batch=2, network=TINY), RecordExperts(num_experts=2))
    with pytest.raises(
        UserError, match=r"experts.epochs \(1\) is less than the 2 that the objective or .* read"
    ):
        run(data, tmp_path, both(tmp_path / "experts"), RecordExperts(num_experts=2, epochs=1))
    with pytest.raises(UserError, match=r"experts.num_experts \(2\) is less than the 5 that"):
        run(data, tmp_path, both(tmp_path / "experts", num_experts=5), RecordExperts(num_experts=2))
