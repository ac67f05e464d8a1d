"""`latentdd prior compare`: which prior suits the user's data."""

from collections.abc import Sequence
from pathlib import Path

import rich

from ldd.data import DistillationData
from ldd.disk.locks import writing_in
from ldd.errors import UserError
from ldd.evaluation import Protocol
from ldd.evaluation.request import Request
from ldd.networks import NetworkFactory
from ldd.prior_comparison.candidates import Candidate, read_candidates
from ldd.prior_comparison.comparing import STUDENTS, Comparison, compare_priors
from ldd.prior_comparison.showing import table_of, write
from ldd.runs.ending import Ending, fit_on
from ldd.runs.history import record_command
from ldd.runs.options import instantiate, parse
from ldd.runs.parser import Parser
from ldd.runtime.devices import pick_device
from ldd.students.workers import NumWorkers


def compare(
    priors: Sequence[str],
    data: DistillationData,
    out: str,
    images_per_class: str = "10,50",
    networks: dict[str, NetworkFactory] | None = None,
    protocol: str = "quick",
    repeats: int = 3,
    seed: int = 0,
    num_workers: NumWorkers = "auto",
) -> tuple[Comparison, list[Candidate], list[Path]]:
    """Compare priors on your data: what their samples teach and look like, and what distilling through each costs.

    Args:
        priors: the priors.
        data: real images; without such options the digits in the package.
        out: folder for comparison.json, comparison.md and comparison.png. Samples, figures and each tested network are
            kept in it at once, so that the same command goes on where it was, and further priors join in.
        images_per_class: numbers of samples of each class that networks learn from, separated by commas.
        networks: networks by name; null takes the protocol's.
        protocol: name of a shipped protocol, or path of a protocol file.
        repeats: networks of each kind for each set.
        seed: of everything random.
        num_workers: worker processes on a CPU ("auto": one per core); the accuracies do not depend on it.

    Raises:
        UserError: a prior, data, numbers or a folder that cannot be used.
    """
    budgets, candidates, folder = _numbers(images_per_class), read_candidates(priors), Path(out)
    recipe = Protocol.load(protocol)
    with writing_in(out):
        request = Request(
            data, recipe, networks, repeats, seed, records=folder / STUDENTS, num_workers=num_workers,
            device=pick_device(),
        )  # fmt: skip
        comparison = compare_priors(candidates, data, budgets, request, folder)
        made = write(comparison, data.spec.classes, folder)
    return comparison, candidates, made


def _numbers(text: str) -> list[int]:
    """Return numbers of images per class, ascending."""
    parts = [part.strip() for part in text.strip("[] ").split(",")]
    if not all(part.isdecimal() and int(part) for part in parts) or len({*parts}) < len(parts):
        raise UserError(
            f"images_per_class ({text}) must be different numbers of at least 1, separated by commas: 10,50"
        )
    return sorted(map(int, parts))


def main(arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    parser = Parser(prog="latentdd prior compare", description=(compare.__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "priors", nargs="+", type=str,
        help="Prior folder, embedded:digits, a hub id (owner/name, hf://owner/name), or a YAML file as in "
        "configs/prior, which says steps and guidance; NAME=PRIOR gives it another name.",
    )  # fmt: skip
    parser.add_class_arguments(DistillationData, "data")
    parser.add_function_arguments(compare, skip={"priors", "data"}, as_positional=False, sub_configs=True)
    options = parse(parser, arguments)
    comparison, candidates, made = compare(**vars(instantiate(parser, options)))
    record_command(options.out, ["prior", "compare", *arguments])
    rich.print(table_of(comparison))
    best = next(one for one in candidates if one.name == comparison.best())
    return Ending(made, (*fit_on(options.data), *_as_prior(best, comparison)))


def _as_prior(best: Candidate, comparison: Comparison) -> list[object]:
    """Return options of `latentdd fit` for a prior as its step was measured."""
    step = comparison.priors[best.name].figures.step
    words: list[object] = ["--model.prior", best.typed]
    if best.settings == {"path_or_hub_id": best.typed}:
        words = ["--model.prior", "prior/folder", "--model.prior.path_or_hub_id", best.typed]
        words += [
            "--model.prior.num_steps",
            step.num_steps,
            "--model.prior.guidance_scale",
            f"{step.guidance_scale:g}",
        ]
    if "latents" not in step.learned:
        words += ["--model.codes", "codes/point", "--model.codes.learn_latents", "false"]
        words += ["--model.codes.learn_noise", "true"]
    return words
