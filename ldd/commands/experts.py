"""`latentdd experts`: record the expert trajectories that trajectory matching needs."""

from collections.abc import Sequence

from ldd.experts.recording import record_experts
from ldd.runs.ending import Ending, fit_on
from ldd.runs.history import record_command
from ldd.runs.options import instantiate, parse
from ldd.runs.parser import recording_parser


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Record, or continue a recording."""
    parser, names = recording_parser()
    parsed = parse(parser, arguments)
    options = instantiate(parser, parsed)
    folder = record_experts(options.data, **{name: options[name] for name in names})
    record_command(folder, [verb, *arguments])
    objective = ("--model.objective", "objective/trajectory", "--model.objective.trajectories", folder)
    return Ending((folder,), (*fit_on(parsed.data), *objective))
