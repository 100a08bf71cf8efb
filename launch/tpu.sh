#!/usr/bin/env bash
# bar_jax.main on a TPU VM or a pod slice, which Google Cloud hands out as a queued resource. Every
# worker of the slice runs one process. tpu_keep.sh takes the steps by itself.
#
#   bash launch/tpu.sh STEP [FLAGS] -- --config=configs/NAME.py --workdir=/mnt/BUCKET/RUN [...]
#
#   STEP  create   asks for the slice              status   of each worker: running, or how it ended
#         wait     until the slice is there        logs     follows the log of worker 0
#         setup    copies HEAD, installs, mounts   stop     the run saves and ends
#         run      starts, in the background       collect  the logs of all workers, into --logs
#         delete   gives the slice back
#
#   --zone ZONE       required                     --project ID     (gcloud's own setting)
#   --type TYPE       of the slice (v5litepod-16)  --runtime NAME   of its VMs (v2-alpha-tpuv5-lite)
#   --bucket BUCKET   required: every worker sees it at /mnt/BUCKET (Cloud Storage FUSE)
#   --name NAME       of the slice (bar-jax)       --spot           cheaper, may be taken away
#   --logs DIR        on this machine (logs)       --poll SECONDS   between two looks (30)
#   --dry-run         prints the commands and runs none
#   --prepare COMMAND run on every worker before each start: fetches the data if they are missing
#   --restarts N      after crashes (3), by tpu_keep.sh
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

zone="" project="" type=v5litepod-16 runtime=v2-alpha-tpuv5-lite name=bar-jax spot="" logs=logs
poll=30 restarts=3 prepare="" bucket=""
need_step "create wait setup run status logs stop collect delete" "$@"
step=$1
parse_flags "zone project type runtime name logs poll restarts prepare bucket" "spot" "${@:2}"
[[ -n $zone ]] || refuse "--zone is missing, such as --zone=us-west4-a"
need_name name "$name"
need_number poll "$poll" 0
need_number restarts "$restarts" 0
[[ ! $step =~ ^(setup|run|collect)$ || $bucket =~ ^[a-z0-9][a-z0-9._-]+$ ]] ||
  refuse "--bucket is '$bucket', expected the name of a bucket, without gs://"
[[ ! $step =~ ^(run|collect)$ ]] || need_main "/mnt/$bucket/"
where=("--zone=$zone" ${project:+"--project=$project"})
queued=(gcloud compute tpus queued-resources) vm=(gcloud compute tpus tpu-vm)
# Of the workers' shells; the file is written by the step run.
# shellcheck disable=SC2016
alive='kill -0 "$(cat bar_jax_logs/pid 2> /dev/null)" 2> /dev/null'

workers() { run "${vm[@]}" ssh "$name" "${where[@]}" --worker=all "--command=$1"; }
state() { run "${queued[@]}" describe "$name" "${where[@]}" "--format=value(state.state)"; }

case $step in
  create)
    run "${queued[@]}" create "$name" "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$runtime" --scopes=cloud-platform ${spot:+--spot} "${where[@]}"
    ;;
  wait)
    while true; do
      found=$(state) || refuse "there is no slice $name to wait for"
      [[ -z $dry_run ]] || echo "$found"
      [[ -z $dry_run && $found != ACTIVE ]] || break
      [[ ! $found =~ ^(FAILED|SUSPEND|DELET) ]] || refuse "the slice $name is $found: delete it"
      echo "bar_jax: the slice $name is $found" && sleep "$poll"
    done
    ;;
  setup)
    [[ -n $dry_run || -z $(git status --porcelain --untracked-files=no) ]] ||
      echo "bar_jax: changes that are not committed are not copied" >&2
    archive=${TMPDIR:-/tmp}/$name.tar.gz
    run git archive "--output=$archive" HEAD
    run "${vm[@]}" scp "$archive" "$name:bar_jax.tar.gz" "${where[@]}" --worker=all
    run rm -f "$archive"
    # shellcheck disable=SC2016
    workers "if $alive; then echo 'error: a run is going on: stop it first' >&2; exit 2; fi;"'
rm -rf bar_jax && mkdir bar_jax && tar -xzf bar_jax.tar.gz -C bar_jax &&
BAR_JAX_VENV=$HOME/bar_jax_venv bash bar_jax/launch/setup_vm.sh '"$bucket"
    ;;
  run) # What is compiled is kept in the bucket: it outlives the slice. So are logs, from their end
    # on: what is written there is seen by others when the file is closed, so `logs` reads the disk.
    worker=(env "JAX_PLATFORMS=tpu,cpu" "JAX_COMPILATION_CACHE_DIR=${workdir%/*}/compiled" nohup
      bash bar_jax/launch/worker.sh --logs ../bar_jax_logs --python ../bar_jax_venv/bin/python
      --keep "$workdir/logs" ${prepare:+--prepare "$prepare"} -- "${main_arguments[@]}")
    # shellcheck disable=SC2016
    workers "if $alive; then echo 'already running'; exit; fi; mkdir -p bar_jax_logs;
$(quoted "${worker[@]}") < /dev/null > /dev/null 2>&1 &"'
echo $! > bar_jax_logs/pid'
    ;;
  status) workers "if $alive; then echo running; else cat bar_jax_logs/*.status || echo lost; fi" ;;
  logs)
    run "${vm[@]}" ssh "$name" "${where[@]}" --worker=0 \
      "--command=tail -n 100 -F \"\$(ls -t bar_jax_logs/*.log | head -n 1)\""
    ;;
  stop) workers "kill -TERM \"\$(cat bar_jax_logs/pid)\"" ;;
  collect) # Those of a slice that is gone were copied when their process ended.
    kept=$(quoted "$workdir/logs/")
    workers "mkdir -p $kept && cp bar_jax_logs/*.log $kept" || true
    run mkdir -p "$logs"
    run gcloud storage cp "gs://${workdir#/mnt/}/logs/*.log" "$logs/"
    ;;
  delete) run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet ;;
esac
