#!/usr/bin/env bash
# The wheel of DIST in an environment of its own, in an empty folder: two steps of the quickstart; then PARTS/sbom.json
# (CycloneDX: every component of that environment with its licence).
#   bash .github/check_wheel.sh DIST PARTS
set -euo pipefail
wheel=$(realpath "$1"/latentdd-*.whl)
mkdir -p "$2"
parts=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "$wheel"
cd "$work"
venv/bin/latentdd fit --config quickstart --trainer.max_steps 2 --trainer.limit_val_batches 0
venv/bin/latentdd inspect runs/quickstart

python3 -m venv "$work/tools"
tools/bin/pip install --quiet cyclonedx-bom
tools/bin/cyclonedx-py environment --output-reproducible --output-file "$parts/sbom.json" venv/bin/python
