"""`latentdd plan`: what it predicts of memory and disk against what a run then takes; what it refuses."""

import json

import pytest

from ldd.artefact.set import DistilledSet
from ldd.planning.probes import StepClock, size_of
from tests.commands.test_cli import latentdd, small  # noqa: F401 - a fixture

STEPS = 12
SETTINGS = ["--trainer.max_steps", STEPS, "--preview.every_n_steps", 5, "--model.images_per_class", 2]


@pytest.fixture(scope="module")
def both(small, tmp_path_factory):  # noqa: F811
    """(plan, folder of the run that followed)."""
    run = tmp_path_factory.mktemp("runs") / "planned"
    arguments = [*small, *SETTINGS, "--trainer.default_root_dir", run]
    planned = latentdd("plan", *arguments, "--ranks", 2, "--network.gbit_per_s", 1, "--json")
    assert planned.returncode == 0, planned.stderr
    assert not run.exists()
    assert latentdd("fit", *arguments).returncode == 0
    return json.loads(planned.stdout.strip().splitlines()[-1]), run


def test_memory_is_within_a_fifth(both):
    plan, run = both
    measured = DistilledSet.load(run).manifest["ledger"]["stages"]["distil"]["peak_memory_mib"]
    assert abs(plan["peak_memory_mib"] / measured - 1) < 0.2


def test_disk_is_within_a_fifth(both):
    plan, run = both
    assert abs(plan["disk_mib"]["total"] * 2**20 / size_of(run) - 1) < 0.2
    for part, path in (("checkpoints", "checkpoints"), ("artefact", "distilled"), ("previews", "previews")):
        assert abs(plan["disk_mib"][part] * 2**20 / size_of(run / path) - 1) < 0.2, part
    assert plan["cache_mib"] == plan["experts_mib"] == 0


def test_what_is_planned_is_the_run(both):
    plan, _ = both
    assert (plan["steps"], plan["chunk"], plan["checkpointing"], plan["device"]) == (STEPS, 20, False, "cpu")
    steps = plan["seconds_per_step"] * STEPS
    assert 0 < steps <= plan["distillation_seconds"] <= plan["total_seconds"]
    assert plan["evaluation_seconds"] == 0  # switched off


def test_two_ranks_are_worked_out_from_one(both):
    plan, run = both
    many, classes = plan["on_ranks"], len(DistilledSet.load(run).classes)
    codes = sum(value.nbytes for name, value in DistilledSet.load(run).codes.items() if name != "noise")
    most = -(-classes // 2)
    # two turns of a ring of two ranks: half of the bytes and seven messages of 50 us each
    waiting = 2 * (7 * 50e-6 + codes / 2 * 8 / 1e9)
    assert (many["ranks"], many["classes"]) == (2, most)
    assert many["network_seconds_per_step"] == pytest.approx(waiting, abs=1e-9)
    assert many["network_mib_per_step"] == pytest.approx(codes / 2**20, abs=1e-9)
    step = plan["seconds_per_step"] * most / classes + waiting
    assert many["seconds_per_step"] == pytest.approx(step, abs=1e-9)
    assert many["distillation_seconds"] == pytest.approx(STEPS * step, abs=1e-6)
    saved = STEPS * (plan["seconds_per_step"] - step)
    assert many["total_seconds"] == pytest.approx(plan["total_seconds"] - saved, abs=1e-6)
    assert "1 Gbit/s" in " ".join(many["assumed"])


def test_steps_are_averaged_without_the_first():
    clock = StepClock()
    clock.steps = [9.0, 1.0, 2.0]
    assert clock.seconds_per_step == 1.5
    clock.steps = [9.0]
    assert clock.seconds_per_step == 9.0
    assert clock.gap == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_steps", -1], r"trainer.max_steps (-1) must be at least 1"),
        (["--trainer.devices", 2], "trainer.devices (2): plan measures one rank"),
        (["--probe_steps", 1], "probe_steps (1) must be at least 2"),
        (["--ranks", 1000], "ranks (1000) must lie between 1 and the number of classes"),
        (["--ranks", 0], "ranks (0) must lie between 1 and the number of classes"),
        (["--network.gbit_per_s", 0], "network.gbit_per_s (0.0) must be above 0"),
        (["--network.latency_us", -1], "network.latency_us (-1.0)"),
    ],
)
def test_refusals(small, arguments, message):  # noqa: F811
    result = latentdd("plan", *small, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
