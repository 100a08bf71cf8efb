#!/usr/bin/env bash
# Keeps bar_jax.main running on a TPU slice until it is finished: asks for the slice, sets it up,
# starts the run; and again after each preemption (of --spot) or crash. Then gives the slice back.
#
#   bash launch/tpu_keep.sh [FLAGS of tpu.sh] -- --config=configs/NAME.py --workdir=/mnt/BUCKET/RUN
#
# It runs on your machine and may be stopped and started at any time: it looks at what there is. A
# new slice gets the commit checked out then. --dry-run prints what it runs if all goes well.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

flags=("$@") poll=30 restarts=3 zone="" project="" name=bar-jax
parse_flags "zone project type runtime name logs poll restarts prepare bucket" "spot" "${@:---help}"

step() { bash launch/tpu.sh "$@" "${flags[@]}"; }
step run --dry-run > /dev/null # refuses at once what tpu.sh would refuse later
if [[ -n $dry_run ]]; then
  for each in create wait setup run status collect delete; do step "$each"; done
  exit 0
fi

crashes=0
while true; do
  found=$(gcloud compute tpus queued-resources describe "$name" "--zone=$zone" \
    ${project:+"--project=$project"} "--format=value(state.state)" 2> /dev/null) || found=ABSENT
  case $found in
    ABSENT) step create || echo "bar_jax: no slice, trying again" >&2 ;;
    FAILED | SUSPENDED) step delete || true ;; # preempted: it never becomes active again
    ACTIVE)
      # What the workers' processes are or how they ended, each once; nothing if none was started.
      ended=$(step status 2> /dev/null | grep -xE 'running|[0-9]+' | sort -u | tr '\n' ' ') || true
      case " $ended" in
        " 0 ") break ;;
        *" 2 "*) refuse "bar_jax.main refuses its arguments: bash launch/tpu.sh logs says why" ;;
        *" running "*) ;;
        " " | *" 75 ") step setup && step run || echo "bar_jax: not started, trying again" >&2 ;;
        *)
          ((++crashes <= restarts)) || refuse "ended with status $ended after $restarts restarts"
          echo "bar_jax: ended with status $ended, starting again ($crashes of $restarts)" >&2
          step run || true
          ;;
      esac
      ;;
  esac
  sleep "$poll"
done
echo "bar_jax: finished"
step collect
step delete
