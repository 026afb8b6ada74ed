#!/usr/bin/env bash
# check.sh ENVIRONMENT: whether hires_gan works as it is installed there: the package, its extras, its ops for the GPUs
# that TORCH_CUDA_ARCH_LIST names, the doctor, and a training of a few steps. It needs no GPU and no network, writes
# below TMPDIR alone, and leaves nothing there.
set -euo pipefail
environment=${1:?the environment}
sources=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" # an empty folder: only the installed package can be imported

export HOME="$work" PATH="$environment/bin:$PATH"
python "$sources/image/installed.py"
hires-gan doctor --quick
hires-gan train "$sources/configs/demo.yaml" run.dir="$work/runs" run.total_kimg=0.25 evaluation.every_kimg=null \
	tracking.uri="sqlite:///$work/mlflow.db"
hires-gan generate "$work/runs/demo" --seeds 0 --out "$work/images"
