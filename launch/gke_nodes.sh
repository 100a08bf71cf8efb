# shellcheck shell=bash
# Sourced by gke.sh and gke_cluster.sh, after their flags are read: checks what both have, and sets
# what follows from the kind of the nodes.
# shellcheck disable=SC2034,SC2154  # set and used by those two

[[ -n $zone && -n $project ]] || refuse "--zone and --project are needed"
need_name pool "$pool"
need_name cluster "$cluster"
need_number nodes "$nodes" 1
[[ $machine =~ -([0-9]+)([tg])$ ]] ||
  refuse "--machine is '$machine', expected a name that ends in its TPUs or GPUs, -4t or -8g"
devices=${BASH_REMATCH[1]} platform=cuda extras=cuda
resource=nvidia.com/gpu selector="cloud.google.com/gke-nodepool: $pool"
if [[ ${BASH_REMATCH[2]} == t ]]; then
  platform=tpu extras=tpu resource=google.com/tpu
  [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] ||
    refuse "--topology is '$topology', expected such as 4x4 or 2x2x2"
  nodes=$((${topology//x/*} / devices))
  ((nodes > 0)) || refuse "--topology is $topology: fewer TPUs than the $devices of a $machine"
  selector+=", cloud.google.com/gke-tpu-accelerator: $accelerator"
  selector+=", cloud.google.com/gke-tpu-topology: $topology"
fi
where=("--zone=$zone" "--project=$project")
kubectl=(kubectl "--context=gke_${project}_${zone}_$cluster") # as get-credentials names it

need_bucket() {
  [[ $bucket =~ ^[a-z0-9][a-z0-9._-]+$ ]] ||
    refuse "--bucket is '$bucket', expected the name of a bucket, without gs://"
}
