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
    planned = latentdd("plan", *arguments, "--json")
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
    ],
)
def test_refusals(small, arguments, message):  # noqa: F811
    result = latentdd("plan", *small, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
