#!/usr/bin/env bash
# Lint and tests in the same .venv as the quickstart, in two processes (-n0: in one), each of
# which takes whole files (tests/conftest.py). Arguments go to pytest: --fast leaves out what is
# slow, --all adds the long matrices (kills, layouts, configs) of which otherwise few cases run.
# Tests that compare with PyTorch skip themselves without it: it is several GB, hence no part of
# the extra "test". For those too: BAR_JAX_EXTRAS=torch bash launch/test.sh
set -euo pipefail
# shellcheck source=launch/setup_venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"

install_bar_jax test

export OPENBLAS_NUM_THREADS=1 # jax's SVD on CPU is about 20 times slower with more
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

"$python" -m pip check
"$python" -m ruff check .
"$python" -m pytest -q -n 2 tests "$@"
