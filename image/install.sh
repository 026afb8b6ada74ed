#!/usr/bin/env bash
# install.sh ENVIRONMENT FOLDER: the wheel in FOLDER into the environment, which has to hold all that it needs. pip
# compiles it to byte code, too: where the root file system is read-only, that could not be made up for later.
set -euo pipefail
environment=${1:?the environment}
folder=${2:?the folder with the wheel}

"$environment/bin/pip" install --quiet --no-deps --no-index "$folder"/hires_gan-*.whl
"$environment/bin/pip" check
