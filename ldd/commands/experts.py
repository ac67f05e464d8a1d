"""`latentdd experts`: record the expert trajectories that trajectory matching needs."""

from collections.abc import Sequence

from ldd.data import DistillationData
from ldd.experts.recording import record_experts
from ldd.runs.history import record_command
from ldd.runs.options import instantiate, parse
from ldd.runs.parser import Parser


def main(verb: str, arguments: Sequence[str]) -> None:
    """Record, or continue a recording."""
    parser = Parser(
        prog=f"latentdd {verb}",
        description="Train networks on the core-set and keep their weights after every epoch. The same command "
        "continues a recording that was stopped.",
    )
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_class_arguments(DistillationData, "data")
    names = parser.add_function_arguments(record_experts, skip={"data", "wait"}, as_positional=False)
    options = instantiate(parser, parse(parser, arguments))
    folder = record_experts(options.data, **{name: options[name] for name in names})
    record_command(folder, [verb, *arguments])
    print(f"recorded in {folder}; use it with --model.objective.trajectories {folder}")
