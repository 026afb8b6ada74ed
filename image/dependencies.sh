#!/usr/bin/env bash
# dependencies.sh ENVIRONMENT: a Python environment with all that hires_gan and its extras need, and without hires_gan.
# It follows from constraints.txt and pyproject.toml alone: as long as these stay, so does the image's largest layer.
# PYTHON names the interpreter, python3 if unset.
set -euo pipefail
environment=${1:?the folder of the environment}
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" -m venv "$environment"
install() { "$environment/bin/pip" install --quiet -c constraints.txt "$@"; }
# First what builds the rest: DeepSpeed and our own ops look at the installed torch, which build isolation would hide.
install setuptools wheel ninja py-cpuinfo torch torchvision
requirements=$("$environment/bin/python" image/requirements.py pyproject.toml)
mapfile -t requirements <<< "$requirements"
install --no-build-isolation "${requirements[@]}"
