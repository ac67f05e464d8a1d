"""Memory plans that earlier runs on this machine found, kept for the same runs to come."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldd.errors import UserError
from ldd.files import write_json
from ldd.memory import Cost, MemoryPlan

MAX_PLANS = 200  # kept; the oldest go


def recall_plan(
    facts: Mapping[str, object],
    measure: Callable[[], Cost],
    make: Callable[[Cost], MemoryPlan],
) -> MemoryPlan:
    """The plan that an earlier run on this machine found for the same `facts`, or a new one, which is kept.

    So the same run has the same chunks, and with them the same rounding, however busy the machine is. A plan that
    no longer fits, or has less than half the images per pass of what fits now, is made anew from the measured cost.
    The file, `memory_plans.json` in `$XDG_CACHE_HOME/latentdd` (or `~/.cache/latentdd`), may be deleted at any time.

    Args:
        facts: all that the cost depends on; plain JSON values.
        measure: measures the cost.
        make: makes a plan for the memory that is free now.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentdd" / "memory_plans.json"
    kept = _read_plans(path)
    found = kept.pop(key, None)
    cost = measure() if found is None else Cost(**found["cost"])
    plan = make(cost)
    if found is not None:
        before = MemoryPlan(**found["plan"])
        if before == plan or (
            before.checkpoint and plan.checkpoint and plan.chunk / 2 < before.chunk <= plan.chunk
        ):
            return before
    entries = [*list(kept.items())[-MAX_PLANS + 1 :], (key, {"cost": asdict(cost), "plan": asdict(plan)})]
    with suppress(UserError):  # a machine without a home to write to measures each time
        write_json(path, dict(entries))
    return plan


def _read_plans(path: Path) -> dict[str, Any]:
    """What the file holds; nothing if it is missing, damaged or of another format."""
    try:
        content = json.loads(path.read_text())
        for entry in content.values():
            Cost(**entry["cost"]), MemoryPlan(**entry["plan"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return dict(content)
