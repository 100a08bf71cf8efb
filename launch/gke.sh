#!/usr/bin/env bash
# bar_jax.main on Google Kubernetes Engine, on TPUs or GPUs: a JobSet (jobset.yaml) with a process
# for each node, started again after preemptions and crashes. gke_cluster.sh makes the nodes.
#
#   bash launch/gke.sh STEP [FLAGS] -- --config=configs/NAME.py --workdir=/mnt/BUCKET/RUN [...]
#
#   STEP  build    makes and pushes the image      status   of the job and of its processes
#         run      submits the job                 logs     follows the log of process 0
#         delete   the job: the run saves and      collect  a log of each process, into --logs
#                  ends; run goes on
#
#   --zone ZONE      required                    --project ID    required
#   --image IMAGE    required, such as us-docker.pkg.dev/PROJECT/REPOSITORY/bar_jax:1
#   --bucket BUCKET  required: all processes see it at /mnt/BUCKET (Cloud Storage FUSE)
#   --cluster NAME   (bar-jax)                   --pool NAME     of the nodes (bar-jax)
#   --machine TYPE   of the nodes (ct5lp-hightpu-4t)
#   --accelerator A  of TPUs, as GKE calls them (tpu-v5-lite-podslice)
#   --topology AxB   of the TPU slice (4x4)      --nodes N       with GPUs (1)
#   --name NAME      of the job (bar-jax)        --restarts N    after crashes (3)
#   --logs DIR       on this machine (logs)      --dry-run       prints the commands and runs none
#   --prepare COMMAND  run in each pod before each start, such as what fetches the data
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

zone="" project="" image="" cluster=bar-jax pool=bar-jax machine=ct5lp-hightpu-4t
accelerator=tpu-v5-lite-podslice topology=4x4 nodes=1 name=bar-jax restarts=3 logs=logs bucket=""
prepare=""
need_step "build run status logs collect delete" "$@"
parse_flags "zone project image cluster pool machine accelerator topology nodes name restarts logs \
prepare bucket" "" "${@:2}"
# shellcheck source=launch/gke_nodes.sh
source launch/gke_nodes.sh
need_name name "$name"
need_number restarts "$restarts" 0
label=jobset.sigs.k8s.io/jobset-name=$name

manifest() { # jobset.yaml with the values of this job
  local text command=(bash launch/worker.sh --logs /tmp/logs ${prepare:+--prepare "$prepare"} --)
  command+=("${main_arguments[@]}")
  # TPUs find each other. Of GPUs process 0 is found by the name that JobSet gives to its pod.
  [[ $platform == tpu ]] || command+=("--coordinator=$name-workers-0-0.$name:12355"
    "--num_processes=$nodes" "--process_id=\$(JOB_COMPLETION_INDEX)")
  printf -v text ", '%s'" "${command[@]//\'/\'\'}"
  local values=(COMMAND "${text:2}" NAME "$name" RESTARTS "$restarts" PROCESSES "$nodes"
    IMAGE "$image" SELECTOR "$selector" RESOURCE "$resource" DEVICES "$devices"
    PLATFORM "$platform" CACHE "${workdir%/*}/compiled" BUCKET "$bucket")
  text=$(< launch/jobset.yaml)
  for ((i = 0; i < ${#values[@]}; i += 2)); do text=${text//@${values[i]}@/"${values[i + 1]}"}; done
  printf '%s\n' "$text"
}

case $1 in
  build | run)
    [[ -n $image ]] || refuse "--image is missing, such as us-docker.pkg.dev/PROJECT/bar/bar_jax:1"
    ;;&
  build) # the commit that is checked out
    image=$(quoted "$image")
    run bash -c "git archive HEAD | docker build --file=launch/Dockerfile --tag=$image\
 --build-arg=EXTRAS=$extras - && docker push $image"
    ;;
  run)
    need_bucket
    need_main "/mnt/$bucket/"
    if [[ -n $dry_run ]]; then
      echo "$(quoted "${kubectl[@]}") apply -f - << 'EOF'" && manifest && echo EOF
    else
      manifest | "${kubectl[@]}" apply -f -
    fi
    ;;
  status)
    run "${kubectl[@]}" get jobset "$name"
    run "${kubectl[@]}" get pods "--selector=$label" --output=wide
    ;;
  logs)
    run "${kubectl[@]}" logs --follow --tail=100 \
      "--selector=$label,batch.kubernetes.io/job-completion-index=0"
    ;;
  collect) # from Cloud Logging, which has those of pods that are gone too
    run mkdir -p "$logs"
    of_job="labels.\"k8s-pod/jobset_sigs_k8s_io/jobset-name\"=\"$name\""
    run gcloud logging read "resource.type=\"k8s_container\" $of_job" "--project=$project" \
      --order=asc --freshness=30d "--format=value(resource.labels.pod_name,textPayload)" |
      if [[ -n $dry_run ]]; then cat; else
        awk -F '\t' -v "to=$logs" '{ pod = to "/" $1 ".log"; sub(/^[^\t]*\t/, ""); print > pod }'
      fi
    ;;
  delete) run "${kubectl[@]}" delete jobset "$name" ;;
esac
