"""Which expert trajectories an objective needs, and those that fit a run."""

from dataclasses import dataclass

from ldd.data.real import RealImages
from ldd.errors import UserError
from ldd.experts.trajectories import ExpertSetting, Trajectories, find_trajectories
from ldd.networks import Network
from ldd.objectives.base import ExpertNeed, StepContext


@dataclass(frozen=True)
class Found:
    """Experts that fit a run.

    Attributes:
        core_set: the real images they were looked up for.
        network: of their architecture, on the run's device and dtype; its weights are random.
        experts: the recording.
    """

    core_set: RealImages
    network: Network
    experts: Trajectories


class ExpertSearch:
    """Looks a recording up in the first step and keeps it, outside of the objective's state.

    Args:
        need: what the objective asks for.
        reason: why it needs so many epochs, for messages.
    """

    def __init__(self, need: ExpertNeed, reason: str) -> None:
        self.need = need
        self.reason = reason
        self._found: Found | None = None

    def find(self, context: StepContext) -> Found:
        """The recording for this run's data and network.

        Raises:
            UserError: none that fits, or one that is too short.
        """
        if self._found is None or self._found.core_set is not context.core_set:
            core_set, network = context.core_set, context.network(self.need.network)
            setting = ExpertSetting.of(context.spec, core_set.keys, core_set.labels, network)
            experts = find_trajectories(self.need.trajectories, setting, self.need.num_experts)
            if experts.training.epochs < self.need.epochs:
                raise UserError(
                    f"objective.trajectories ({experts.folder}) has {experts.training.epochs} epochs, but "
                    f"{self.reason} epoch {self.need.epochs}; lower one of them, or record experts with --epochs "
                    f"{self.need.epochs} or more"
                )
            self._found = Found(core_set, network, experts)
        return self._found
