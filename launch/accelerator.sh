#!/usr/bin/env bash
# Is bar_jax right on this machine's GPUs or TPUs, and how fast? With the Python that is there
# (PYTHON, or python3), which has JAX for them; nothing is installed from a network.
#
#   bash launch/accelerator.sh [FLAGS]
#
#   --minutes N    after which nothing more is measured (8); the most valuable rows come first, one
#                  that would not end in time is left out
#   --only NAMES   these rows alone, separated by commas; a wrong name lists those that there are
#   --out DIR      results.md, results.jsonl (a line for each row as it ends), logs, traces and
#                  compiled programs (runs/accelerator-DATE). The same DIR again adds to it, and
#                  compiles less
#   --wheels DIR   packages that this Python lacks, as wheels: put into OUT/site, for this run alone
#   --tiny         tiny models, on the CPU unless JAX_PLATFORMS says otherwise: whether the script
#                  works, no measurement. Without --only, of rows that differ in a size or the dtype
#                  alone one
#   --dry-run      prints the commands and runs none
#
# Ends with status 0, with 1 if a row failed, or with 2 for a mistake, also where JAX finds no
# accelerator. Cut off, by Ctrl-C, SIGTERM or the minutes, it keeps what it has.
set -euo pipefail
from=$PWD
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

minutes=8 only="" out=runs/accelerator-$(date +%Y%m%d-%H%M%S) wheels="" tiny=""
parse_flags "minutes only out wheels" "tiny" "$@"
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ && $minutes =~ [1-9] ]] ||
  refuse "--minutes is '$minutes', expected a positive number"
[[ $out == /* ]] || out=$PWD/$out
[[ -z $wheels || $wheels == /* ]] || wheels=$from/$wheels
python=${PYTHON:-python3}
site=$out/site
[[ -n $dry_run ]] || "$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null ||
  refuse "$python is no Python of 3.11 or newer: set PYTHON to one"
[[ -n $dry_run ]] || { mkdir -p "$out" 2> /dev/null && [[ -w $out ]]; } ||
  refuse "--out is '$out', expected a folder that can be written to"

if [[ -n $wheels ]]; then
  found=("$wheels"/*.whl)
  [[ -e ${found[0]} ]] || refuse "--wheels is '$wheels', expected a folder with *.whl in it"
  run "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --upgrade --target "$site" "${found[@]}" || refuse "--wheels: $python -m pip could not install"
fi
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
export OPENBLAS_NUM_THREADS=1 # with more jax's SVD on CPU is about 20 times slower
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore:resource_tracker} # of processes that were ended
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3
# Nothing else needs the device, and comparisons need the CPU too.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
if [[ ${JAX_PLATFORMS:-cpu} != *cpu* ]]; then export JAX_PLATFORMS=$JAX_PLATFORMS,cpu; fi
if [[ -n $tiny ]]; then # compiles a few times as fast
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
  export XLA_FLAGS="--xla_backend_optimization_level=0 ${XLA_FLAGS:-}"
fi
command=("$python" -m bar_jax.accelerator --minutes "$minutes" --only "$only" --out "$out")
[[ -z $tiny ]] || command+=(--tiny)
[[ -z $dry_run ]] || { run "${command[@]}" && exit; }
exec "${command[@]}"
