#!/usr/bin/env bash
# Makes and deletes what gke.sh runs jobs on: a cluster of Google Kubernetes Engine with JobSet in
# it, and pools of nodes with TPUs or GPUs.
#
#   bash launch/gke_cluster.sh STEP [FLAGS]
#
#   STEP  create       the cluster, with a small node that has neither
#         grant        lets the jobs read and write --bucket
#         create-pool  a slice of TPUs, or nodes with GPUs; from here on it costs
#         delete-pool, delete
#
#   --zone ZONE      required                    --project ID   required
#   --cluster NAME   (bar-jax)                   --pool NAME    (bar-jax)
#   --machine TYPE   ct5lp-hightpu-4t: of TPUs; a3-highgpu-8g: of GPUs; the number is that of a node
#   --accelerator A  of GPUs: nvidia-h100-80gb   --nodes N      with GPUs (1)
#   --topology AxB   of the TPU slice (4x4)      --spot         cheaper, may be taken away
#   --bucket BUCKET  of the step grant           --dry-run      prints the commands and runs none
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

zone="" project="" cluster=bar-jax pool=bar-jax machine=ct5lp-hightpu-4t accelerator=""
topology=4x4 nodes=1 spot="" bucket=""
need_step "create grant create-pool delete-pool delete" "$@"
parse_flags "zone project cluster pool machine accelerator topology nodes bucket" "spot" "${@:2}"
# shellcheck source=launch/gke_nodes.sh
source launch/gke_nodes.sh
# The release of JobSet that jobset.yaml was written for.
jobset=https://github.com/kubernetes-sigs/jobset/releases/download/v0.8.1/manifests.yaml

case $1 in
  create)
    run gcloud container clusters create "$cluster" "${where[@]}" --num-nodes=1 \
      "--workload-pool=$project.svc.id.goog" --addons=GcsFuseCsiDriver
    run gcloud container clusters get-credentials "$cluster" "${where[@]}"
    run "${kubectl[@]}" apply --server-side -f "$jobset"
    run "${kubectl[@]}" create serviceaccount bar-jax # what the pods of jobset.yaml act as
    ;;
  grant) # The account's name in Google Cloud has the project's number in it.
    need_bucket
    number="\$(gcloud projects describe $(quoted "$project") '--format=value(projectNumber)')"
    pools=projects/$number/locations/global/workloadIdentityPools
    account=principal://iam.googleapis.com/$pools/$project.svc.id.goog/subject/ns/default/sa/bar-jax
    run bash -c "gcloud storage buckets add-iam-policy-binding gs://$bucket \
--role=roles/storage.objectUser \"--member=$account\""
    ;;
  create-pool)
    hardware=("--tpu-topology=$topology")
    if [[ $platform == cuda ]]; then
      [[ -n $accelerator ]] || refuse "--accelerator is missing, such as nvidia-h100-80gb"
      hardware=("--accelerator=type=$accelerator,count=$devices,gpu-driver-version=latest")
    fi
    run gcloud container node-pools create "$pool" "--cluster=$cluster" "${where[@]}" \
      "--machine-type=$machine" "--num-nodes=$nodes" "${hardware[@]}" --scopes=cloud-platform \
      --workload-metadata=GKE_METADATA ${spot:+--spot}
    ;;
  delete-pool)
    run gcloud container node-pools delete "$pool" "--cluster=$cluster" "${where[@]}" --quiet
    ;;
  delete) run gcloud container clusters delete "$cluster" "${where[@]}" --quiet ;;
esac
