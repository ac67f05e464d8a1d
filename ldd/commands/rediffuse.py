"""`latentdd rediffuse`: send a finished set through a frozen diffusion model once more."""

import time
from collections.abc import Sequence
from dataclasses import replace

from ldd.artefact.set import DistilledSet
from ldd.disk.files import check_writable
from ldd.distiller.rediffusion import Rediffusion, rediffuse as rediffused
from ldd.runs.ending import Ending, ending_of_set
from ldd.runs.verb import run_function
from ldd.runtime.devices import pick_device
from ldd.runtime.ledger import DECODES, REDIFFUSE, measured, total


def rediffuse(
    path: str,
    out: str,
    prior: str | None = None,
    rediffusion: Rediffusion = Rediffusion(),  # noqa: B008 - frozen
    seed: int = 0,
) -> Ending:
    """Noise a finished set's images and denoise them with a pull back to themselves; no data and no training.

    Args:
        path: folder of a distilled set, or of a run.
        out: folder of the set that is written.
        prior: prior folder, embedded:digits, or a hub id; it goes over `--rediffusion.prior`.
        rediffusion: how, for instance configs/rediffusion/diver.yaml.
        seed: of the noise.

    Raises:
        UserError: a set, a prior or a folder that cannot be used.
    """
    distilled, device = DistilledSet.load(path), pick_device()
    settings = rediffusion if prior is None else replace(rediffusion, prior=prior)
    generator = settings.load_prior(None, device)
    check_writable(out)
    started = time.perf_counter()
    made = rediffused(distilled, generator, settings, seed)
    cost = {**measured(time.perf_counter() - started, device), DECODES: len(made.images)}
    made.charged(total([made.manifest.ledger.stages, {REDIFFUSE: cost}])).save(out)
    print(f"{len(made.images)} images of {made.num_classes} classes re-diffused")
    if distilled.soft_labels is not None:
        print("its soft labels belonged to the images as they were; latentdd label gives new ones")
    return ending_of_set(out)


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(rediffuse, verb, arguments)
