#!/usr/bin/env bash
# One process of bar_jax.main with its log: what the other scripts start on each machine.
#
#   bash launch/worker.sh [FLAGS] -- ARGUMENTS of bar_jax.main
#
#   --logs DIR        gets NAME.TIME.log at every start, and NAME.status when it has ended (logs)
#   --name NAME       of the process (the index from SLURM or Kubernetes, or the host's name)
#   --python FILE     a Python that has bar_jax's packages (.venv/bin/python, or python3)
#   --prepare COMMAND run first, at every start, such as what fetches the data if they are missing
#   --keep DIR        gets a copy of the log when it has ended: a machine may go, with its disk
#   --dry-run         prints the command and runs nothing
#
# The log is shown too. SIGTERM and Ctrl-C reach the process as SIGTERM: it saves and ends. Exit
# status: 0 finished; 75 asked to stop, the same command goes on; else the process's own.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

logs=logs name="" python="" prepare="" keep=""
parse_flags "logs name python prepare keep" "" "$@"
need_main ""
index=${SLURM_PROCID:-${JOB_COMPLETION_INDEX:-}}
[[ -n $name ]] || name=${index:+process_$index}
[[ -n $name ]] || name=$(hostname)
[[ -n $python || ! -x .venv/bin/python ]] || python=.venv/bin/python
command=("${python:-python3}" -m bar_jax.main "${main_arguments[@]}")

# With more threads OpenBLAS makes jax's SVD on CPU about 20 times slower.
export OPENBLAS_NUM_THREADS=1 PYTHONUNBUFFERED=1
# What was compiled is found again after a restart: a folder of the user's, not of the run's.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${HOME:-/tmp}/.cache/bar_jax/compiled}
if [[ -n $dry_run ]]; then
  run "${command[@]}"
  exit 0
fi

mkdir -p "$logs"
log=$logs/$name.$(date -u +%Y%m%dT%H%M%SZ).log
rm -f "$logs/$name.status"
: >> "$log" # so that it can be shown from the first line on

asked="" signalled="" process=""
# shellcheck disable=SC2329
forward() {
  asked=true signalled=true
  [[ -z $process ]] || kill -TERM "$process" 2> /dev/null || true
}
trap forward TERM INT

# In the background, so that bash hears signals meanwhile. It writes to the file itself: were it a
# pipe, the process would die with its reader where a signal goes to the whole group, as in SLURM.
{ bash -c "${prepare:-true}" && exec "${command[@]}"; } >> "$log" 2>&1 &
process=$!
[[ -z $asked ]] || kill -TERM "$process" 2> /dev/null || true # it came before there was a process
# SLURM's processes share an output: the first of them shows its log.
if [[ ${SLURM_PROCID:-0} == 0 ]]; then shown=$log; else shown=/dev/null; fi
(trap '' TERM INT && exec tail -n +1 -f "$shown") &
shown=$!
disown "$shown" # bash is not to report its end

# A signal ends the waiting, not the process: wait again then.
while true; do
  status=0 signalled=""
  wait "$process" || status=$?
  [[ -n $signalled ]] || break
done
sleep 0.5 # the last lines
kill -KILL "$shown" 2> /dev/null || true

# Killed by SIGTERM before Python heard signals: nothing had begun.
if ((status == 143)) && [[ -n $asked ]]; then status=$stopped; fi
echo "$status" > "$logs/$name.status"
if [[ -n $keep ]]; then mkdir -p "$keep" && cp "$log" "$keep/" || true; fi
exit "$status"
