#!/usr/bin/env bash
# Run by tpu.sh on every worker of a TPU slice, in the clone it was copied to: makes the environment
# $BAR_JAX_VENV with bar_jax in it. TPU VMs may have a Python that is too old; uv brings another.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" && [[ ! -d $BAR_JAX_VENV ]]; then
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --seed --python 3.11 "$BAR_JAX_VENV"
fi
# shellcheck source=launch/setup_venv.sh
source launch/setup_venv.sh
install_bar_jax tpu,gcp
