#!/usr/bin/env bash
# The oldest version of every dependency that pyproject.toml allows, extras included, and a part of the suite on them.
# Without tests/docs, which builds the site with the tools of one extra (docs/maintaining/release.md says more).
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet uv
"$work/tools/bin/uv" venv --quiet --python 3.11 "$work/venv"
"$work/tools/bin/uv" pip install --python "$work/venv/bin/python" --resolution lowest-direct -e ".[test,tensorboard,wandb]"
"$work/venv/bin/python" -m pytest tests/end_to_end/test_reference.py tests/artefact tests/commands/test_cli.py \
  tests/data/test_datamodule.py tests/networks tests/objectives tests/priors tests/test_packaging.py \
  --deselect tests/objectives/test_trajectory.py::test_memory_does_not_grow_with_the_inner_steps
