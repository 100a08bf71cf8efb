#!/usr/bin/env bash
# From a fresh clone to generated images on this machine: installs bar_jax into .venv and runs
# configs/quickstart.py. Arguments are passed on, e.g. --config.seed=1 or --workdir=/tmp/run.
# Started again it goes on where it stopped. Environment variables: launch/README.md.
set -euo pipefail
# shellcheck source=launch/setup_venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"

workdir=runs/quickstart
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done

install_bar_jax

# With more threads OpenBLAS makes jax's SVD on CPU about 20 times slower.
export OPENBLAS_NUM_THREADS=1
"$python" -m bar_jax.main --config=configs/quickstart.py --workdir="$workdir" "$@"
[[ ! -d $workdir ]] || echo "bar_jax: results are in $(cd "$workdir" && pwd)"
