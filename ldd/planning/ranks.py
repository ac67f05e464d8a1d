"""What a run takes on several ranks, worked out from one rank that was measured; it says what it assumes."""

import math
from dataclasses import dataclass

from ldd.errors import UserError, check_not_negative

MESSAGES = 7
"""Messages of a step, whatever the number of ranks (`python -m benchmarks.many_ranks`; DM and DC)."""

_MIB = 2**20


@dataclass(frozen=True)
class Network:
    """What joins the ranks.

    Attributes:
        gbit_per_s: what one rank sends and receives in a second, in 10^9 bits.
        latency_us: of one message between two ranks, in microseconds.
    """

    gbit_per_s: float = 10.0
    latency_us: float = 50.0

    def __post_init__(self) -> None:
        check_not_negative("network", gbit_per_s=self.gbit_per_s, latency_us=self.latency_us)
        if not self.gbit_per_s:
            raise UserError(f"network.gbit_per_s ({self.gbit_per_s}) must be above 0")

    def seconds(self, size: int, ranks: int) -> float:
        """Return the time of the messages of a step, of which one carries `size` bytes, as rings send them.

        A sum over a ring of R ranks has 2 (R - 1) turns, in each of which a rank sends 1 / R of the bytes.
        """
        turns = 2 * (ranks - 1)
        return turns * (MESSAGES * self.latency_us / 1e6 + size / ranks * 8 / (self.gbit_per_s * 1e9))


@dataclass(frozen=True)
class OnRanks:
    """A run on several ranks.

    Attributes:
        ranks: how many.
        classes: most of them that a rank has.
        seconds_per_step: of a training step.
        network_seconds_per_step: what of it is waiting for messages.
        network_mib_per_step: what each rank sends in a step.
        distillation_seconds: of all steps, with checkpoints and pictures, which the first rank writes.
        total_seconds: of the run, the evaluation, which ranks do not share, included.
        assumed: what these figures take for granted.
    """

    ranks: int
    classes: int
    seconds_per_step: float
    network_seconds_per_step: float
    network_mib_per_step: float
    distillation_seconds: float
    total_seconds: float
    assumed: tuple[str, ...]


def check_ranks(ranks: int, classes: int) -> None:
    """Raise for ranks that would have no class."""
    if not 1 <= ranks <= classes:
        raise UserError(
            f"ranks ({ranks}) must lie between 1 and the number of classes, {classes}: each has some"
        )


def on_ranks(
    ranks: int,
    network: Network,
    *,
    classes: int,
    gradient_bytes: int,
    steps: int,
    seconds_per_step: float,
    other_seconds: float,
) -> OnRanks:
    """Return what a run takes on `ranks` ranks that are each as fast as the measured one.

    Args:
        ranks: from 1 to the number of classes, see `check_ranks`.
        network: what joins them.
        classes: of the data; class k is dealt to rank k mod R.
        gradient_bytes: of all codes and trained parts, which are summed over the ranks in one message a step.
        steps: of the run.
        seconds_per_step: of one rank with all classes.
        other_seconds: of the run apart from its steps, evaluations included.
    """
    most = math.ceil(classes / ranks)
    waiting = network.seconds(gradient_bytes, ranks)
    step = seconds_per_step * most / classes + waiting
    return OnRanks(
        ranks=ranks,
        classes=most,
        seconds_per_step=step,
        network_seconds_per_step=waiting,
        network_mib_per_step=2 * (ranks - 1) / ranks * gradient_bytes / _MIB,
        distillation_seconds=steps * step,
        total_seconds=steps * step + other_seconds,
        assumed=(
            "every rank has a device, cores and memory like the measured one",
            "a step's time is in proportion to the classes of the rank that has most",
            f"{MESSAGES} messages a step over a ring, {network.gbit_per_s:g} Gbit/s, {network.latency_us:g} us each",
            "start, checkpoints, pictures and evaluation take as long as on one rank",
            "memory of a rank is at most that of one rank with all classes; disk is shared and the same",
        ),
    )
