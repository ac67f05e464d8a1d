"""Any number of ranks reaches the same codes, whoever starts them, and resumes to the same bits."""

from functools import partial

import numpy as np
import pytest
import torch
from processes import run_ranks, slurm_variables, torchrun_variables
from small_runs import NARROW, fit, matching

from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.errors import UserError
from ldd.experts.recording import record_experts
from ldd.networks import ViT
from ldd.objectives import GradientMatching, Objective, TrajectoryMatching
from ldd.priors import LatentDiffusionPrior, PixelPrior

STEPS = 20
THREE = ["0", "1", "2"]
"""Classes: 2 and 1 for two ranks; 1, 1, 1 and none for four."""

SMOOTH = partial(ViT, patch_size=16, dim=8, depth=1, heads=2)
KINDS = ("distribution", "gradient", "trajectory")


def objective_of(kind: str, experts: str) -> Objective:
    # Small rates, and students without kinks: otherwise rounding in float32 turns a few units on or off and grows
    # within ten steps to the size of the steps, on one rank as well (with another chunk size).
    if kind == "distribution":
        return matching(lr_latents=1e-3, lr_conditioning=1e-3)
    if kind == "gradient":
        rates = {"lr_latents": 5e-4, "lr_conditioning": 5e-4}
        return GradientMatching(real_batch=4, network=SMOOTH, outer_loop=3, inner_loop=2, **rates)
    rates = {"lr_latents": 0.1, "lr_conditioning": 0.1}
    return TrajectoryMatching(experts, network=SMOOTH, syn_steps=3, **rates)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    settings = {"network": SMOOTH, "num_experts": 2, "epochs": 3, "batch_size": 64, "learning_rate": 0.05}
    root = str(tmp_path_factory.mktemp("experts"))
    return str(record_experts(DistillationData(subset=THREE), out=root, progress=False, **settings))


def trained(prior, experts, folder, precision, ranks, steps=STEPS):
    """Codes of each kind after `steps` steps."""
    data = DistillationData(subset=THREE)
    codes = {}
    for kind in KINDS:
        model = fit(
            LatentDiffusionPrior(str(prior), num_steps=1),
            objective_of(kind, experts),
            folder / kind,
            steps,
            data,
            precision=precision,
            ranks=ranks,
            images_per_class=3,
        )
        codes[kind] = {
            name: value.detach().numpy()
            for name, value in model.codes.named_parameters()
            if value.requires_grad
        }
    return codes


@pytest.mark.parametrize(
    ("precision", "ranks", "variables", "tolerance"),
    [("32-true", 2, slurm_variables, 1e-3), ("64-true", 4, torchrun_variables, 1e-8)],
    ids=["float32, two tasks of srun", "float64, four processes of torchrun"],
)
def test_codes_do_not_depend_on_the_number_of_ranks(
    tiny_prior_path, experts, tmp_path, precision, ranks, variables, tolerance
):
    common = (tiny_prior_path, experts)
    start = trained(*common, tmp_path / "start", precision, 1, steps=0)
    one = trained(*common, tmp_path / "one", precision, 1)
    many = run_ranks(trained, *common, tmp_path / "many", precision, ranks, environments=variables(ranks))
    for kind in KINDS:
        for name, value in one[kind].items():
            moved = np.linalg.norm(value - start[kind][name])
            assert moved > 1e-4, (kind, name)
            for found in many:
                error = np.linalg.norm(found[kind][name] - value)
                print(kind, name, f"moved {moved:.3g}, differs by {error:.3g}")
                assert error <= tolerance * moved, (kind, name)
                assert (found[kind][name] == many[0][kind][name]).all(), (kind, name)
        written = [DistilledSet.load(tmp_path / name / kind).manifest for name in ("one", "many")]
        decodes = [manifest["ledger"]["stages"]["distil"]["decodes"] for manifest in written]
        assert decodes[0] == decodes[1] > 0, kind  # of all ranks together


def resumed(folder, ranks):
    """Codes of an unbroken run of five steps, and of one that stopped after two."""
    data, codes = DistillationData(subset=THREE), []
    for name, stops in (("whole", [5]), ("half", [2, 5])):
        last = None
        for steps in stops:
            objective = GradientMatching(real_batch=4, network=NARROW, outer_loop=3, inner_loop=2)
            arguments = {"ranks": ranks, "ckpt_path": last, "images_per_class": 2}
            model = fit(PixelPrior(32), objective, folder / name, steps, data, **arguments)
            last = folder / name / "checkpoints" / "last.ckpt"
        codes.append(model.codes.latents.detach().numpy())
    return codes


def test_two_ranks_resume_to_the_same_bits(tmp_path):
    for whole, half in run_ranks(resumed, tmp_path, 2, environments=torchrun_variables(2)):
        assert (whole == half).all()


def refused(folder, ranks):
    """What a rank says when only the other one's class has too few images."""
    data = DistillationData(subset=THREE)
    data.setup()
    counts = data.core_set.counts
    scarce = data.core_set.select(
        torch.arange(counts[0] + counts[1] + 4)
    )  # four of class 2, which is rank 0's
    data.core_set = scarce
    try:
        fit(PixelPrior(32), matching(real_batch=5), folder, 1, data, ranks=ranks)
    except UserError as error:
        return str(error)


def test_all_ranks_refuse_what_one_cannot_do(tmp_path):
    said = run_ranks(refused, tmp_path, 2, environments=torchrun_variables(2))
    assert [text.partition(" of")[0] for text in said] == [
        "objective.real_batch (5) is more than the 4 real images"
    ] * 2
