#!/usr/bin/env bash
# Runs bar_jax.main on this machine, on its CPU or on all its GPUs. Started again it goes on.
#
#   bash launch/local.sh [FLAGS] -- --config=configs/NAME.py --workdir=DIR [...]
#
#   --platform cpu|gpu  (gpu if there is nvidia-smi, else cpu)
#   --processes N       1: one process with all devices. More: on gpu one for each of the first N
#                       GPUs (or of CUDA_VISIBLE_DEVICES), on cpu a cluster to try things out (1)
#   --devices N         virtual devices of each process on cpu (1)
#   --restarts N        how often a run that crashed is started again (0)
#   --logs DIR          a log of each process (WORKDIR/logs)
#   --port N            where the processes meet (12355)
#   --python FILE       a Python that has bar_jax's packages (makes .venv and installs them there)
#   --dry-run           prints the commands and runs none
#
# Ctrl-C or SIGTERM: the run saves and ends. Relative paths are seen from the repository's root.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

platform=cpu processes=1 devices=1 restarts=0 logs="" port=12355 python=""
! command -v nvidia-smi > /dev/null || platform=gpu
parse_flags "platform processes devices restarts logs port python" "" "$@"
[[ $platform =~ ^(cpu|gpu)$ ]] || refuse "--platform is '$platform', expected cpu or gpu"
need_number processes "$processes" 1
need_number devices "$devices" 1
need_number restarts "$restarts" 0
need_number port "$port" 1024
[[ $platform == cpu || $devices == 1 ]] || refuse "--devices is $devices, expected --platform=cpu"
need_main ""
[[ -n $logs ]] || logs=$workdir/logs
IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((processes - 1)))}"
[[ $platform == cpu ]] || ((processes == 1 || processes <= ${#gpus[@]})) ||
  refuse "--processes is $processes, but CUDA_VISIBLE_DEVICES has ${#gpus[@]} GPUs"

if [[ -z $python ]]; then
  if [[ $platform == gpu ]]; then extras=cuda; else extras=""; fi
  run source launch/setup_venv.sh
  run install_bar_jax "$extras"
  [[ -n $python ]] || python=${BAR_JAX_VENV:-.venv}/bin/python # of a dry run
fi

pids=() asked="" signalled=""
# shellcheck disable=SC2329
forward() {
  asked=true signalled=true
  [[ -z ${pids[*]} ]] || kill -TERM "${pids[@]}" 2> /dev/null || true
}
trap forward TERM INT

start() { # the I-th process
  local command=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices") of_many=()
  [[ $platform == cpu ]] || command=(env "JAX_PLATFORMS=cuda,cpu")
  if ((processes > 1)); then
    [[ $platform == cpu ]] || command+=("CUDA_VISIBLE_DEVICES=${gpus[$1]}")
    of_many=("--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$1")
  fi
  command+=(bash launch/worker.sh --logs "$logs" --name "process_$1" --python "$python")
  command+=(-- "${main_arguments[@]}" "${of_many[@]}")
  if [[ -n $dry_run ]]; then run "${command[@]}" && return; fi
  if (($1 == 0)); then "${command[@]}" & else "${command[@]}" > /dev/null & fi
  pids+=("$!")
}

for ((attempt = 0; ; attempt++)); do
  pids=() result=0
  for ((i = 0; i < processes; i++)); do start "$i"; done
  [[ -z $dry_run ]] || exit 0
  # All are waited for: where one has died the others give up by themselves.
  for pid in "${pids[@]}"; do
    while true; do
      status=0 signalled=""
      wait "$pid" || status=$?
      [[ -n $signalled ]] || break # a signal ends the waiting, not the process
    done
    # Of several the worst counts; 2, a mistake in the arguments, is no crash and comes first.
    if ((status == 2 || (result != 2 && status > result))); then result=$status; fi
  done
  case $result in
    0) exit 0 ;;
    "$stopped") echo "bar_jax: stopped; the same command goes on" && exit 0 ;;
    2) exit 2 ;;
  esac
  if [[ -n $asked ]] || ((attempt >= restarts)); then break; fi
  echo "bar_jax: ended with status $result, starting again ($((attempt + 1)) of $restarts)" >&2
done
echo "error: ended with status $result; logs are in $logs" >&2
exit "$result"
