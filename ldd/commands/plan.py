"""`latentdd plan`: print what a run will take, measured in a folder that is thrown away."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import rich
from rich.table import Table

from ldd.planning.run import Plan, PlanCLI, plan_run
from ldd.runs.ending import Ending, without
from ldd.runtime.progress import duration


def _table(plan: Plan) -> Table:
    table = Table(title=f"{plan.steps} steps on {plan.device}", show_header=False)
    rows = {
        "chunk": f"{plan.chunk} images{', activations computed again in backward' * plan.checkpointing}",
        "a step": f"{plan.seconds_per_step:.3g} s",
        "to the first step": duration(plan.setup_seconds),
        "all steps": duration(plan.distillation_seconds),
        "evaluation": duration(plan.evaluation_seconds),
        "in all": duration(plan.total_seconds),
        "peak memory": f"{plan.peak_memory_mib:,.0f} MiB",
        "evaluation's peak memory": f"{plan.evaluation_peak_memory_mib:,.0f} MiB",
        **{f"disk, {name}": f"{mib:,.2f} MiB" for name, mib in plan.disk_mib.items() if mib},
        "decoded images": f"{plan.cache_mib:,.2f} MiB",
        "experts": f"{plan.experts_mib:,.2f} MiB",
    }
    if (many := plan.on_ranks) is not None:
        rows |= {
            f"on {many.ranks} ranks: a step": f"{many.seconds_per_step:.3g} s for {many.classes} classes a rank",
            "... its messages": f"{many.network_seconds_per_step:.2g} s, {many.network_mib_per_step:,.2f} MiB",
            "... all steps, in all": f"{duration(many.distillation_seconds)}, {duration(many.total_seconds)}",
            "... if": "; ".join(many.assumed),
        }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Measure in a temporary folder and print."""
    with tempfile.TemporaryDirectory(prefix="latentdd-plan-") as folder:
        cli = PlanCLI(Path(folder) / "run", arguments)
        plan = plan_run(cli)
    if cli.options.json:
        print(json.dumps(asdict(plan)))
        return Ending()
    rich.print(_table(plan))
    return Ending(next=("fit", *_of_fit(arguments)))


def _of_fit(arguments: Sequence[str]) -> Sequence[str]:
    """Return the words that the run itself takes."""
    for option in ("--json", "--probe_steps", "--ranks", "--network"):
        arguments = without(option, arguments)
    return arguments
