#!/usr/bin/env bash
# wheel.sh ENVIRONMENT FOLDER: hires_gan as a wheel, its ops compiled for the CPU and for the GPUs that
# TORCH_CUDA_ARCH_LIST names. It fails where either library cannot be built. To be run in a clean copy of the sources:
# setuptools takes into the wheel what an earlier build has left in build/.
set -euo pipefail
environment=${1:?the environment with torch}
folder=${2:?the folder for the wheel}
cd "$(dirname "$0")/.."

HIRES_GAN_BUILD=cuda "$environment/bin/pip" wheel --quiet --no-build-isolation --no-deps -c constraints.txt \
	--wheel-dir "$folder" .
