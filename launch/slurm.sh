#!/usr/bin/env bash
# Submits bar_jax.main to SLURM: a process for each GPU, queued again after a preemption or at the
# end of the time limit, until the run is finished.
#
#   bash launch/slurm.sh [FLAGS] -- --config=configs/NAME.py --workdir=DIR [...]
#
#   --nodes N           (1)
#   --gpus N            of each node; 0: one process a node, on its CPU (8)
#   --cpus N            cores of each process (8)
#   --time LIMIT        of one turn, as sbatch takes it (24:00:00)
#   --warning SECONDS   how long before the end of a turn the run is asked to save and stop (300)
#   --name NAME         of the job (bar-jax)
#   --partition NAME, --account NAME  as sbatch takes them (the cluster's default)
#   --sbatch="OPTIONS"  further options of sbatch, such as --sbatch="--qos=low --constraint=h100"
#   --restarts N        how often a run that crashed is started again within a turn (3)
#   --logs DIR          of the job and of each process (WORKDIR/logs)
#   --python FILE       a Python that has bar_jax's packages (.venv/bin/python, or python3)
#   --dry-run           prints the command and runs nothing
#   --turn              inside a job: what sbatch is given to run
#
# WORKDIR is an absolute path that all nodes see, and so is this clone.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus=8 cpus=8 time=24:00:00 warning=300 name=bar-jax partition="" account="" sbatch=""
restarts=3 logs="" python="" turn=""
parse_flags "nodes gpus cpus time warning name partition account sbatch restarts logs python" \
  "turn" "$@"
need_number nodes "$nodes" 1
need_number gpus "$gpus" 0
need_number cpus "$cpus" 1
need_number warning "$warning" 60 # SLURM is exact to a minute
need_number restarts "$restarts" 0
need_name name "$name"
[[ $time =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] ||
  refuse "--time is '$time', expected minutes, HH:MM:SS or DAYS-HH:MM:SS"
need_main /
logs=${logs:-$workdir/logs}
tasks=$((gpus > 0 ? gpus : 1))

if [[ -z $turn ]]; then
  self=(bash launch/slurm.sh --turn "--cpus=$cpus" "--gpus=$gpus" "--restarts=$restarts")
  self+=("--logs=$logs" ${python:+"--python=$python"} -- "${main_arguments[@]}")
  # --signal without "B:" reaches the processes, not the shell, which then asks for the next turn.
  options=("--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks" "--cpus-per-task=$cpus")
  ((gpus == 0)) || options+=("--gpus-per-node=$gpus")
  options+=("--time=$time" "--signal=TERM@$warning" --requeue --open-mode=append)
  options+=("--chdir=$PWD" "--output=$logs/slurm_%j.log" ${partition:+"--partition=$partition"})
  options+=(${account:+"--account=$account"})
  read -ra further <<< "$sbatch"
  run mkdir -p "$logs"
  run sbatch "${options[@]}" "${further[@]}" --wrap "exec $(quoted "${self[@]}")"
  exit 0
fi

# A turn. A preemption's SIGTERM may reach this shell too: it is the processes' to act on. (Not
# ignored, which srun would inherit. SIGTERM to srun itself would kill them at once.)
trap : TERM
if ((gpus > 0)); then platform=cuda,cpu; else platform=cpu; fi
command=(env "JAX_PLATFORMS=$platform" srun "--cpus-per-task=$cpus" --kill-on-bad-exit=0)
command+=(bash launch/worker.sh "--logs=$logs" ${python:+"--python=$python"})
command+=(-- "${main_arguments[@]}")
for ((attempt = 0; attempt <= restarts; attempt++)); do
  if [[ -n $dry_run ]]; then run "${command[@]}" && exit 0; fi
  status=0
  "${command[@]}" || status=$?
  case $status in
    0 | 2) exit "$status" ;; # finished; a mistake in the arguments
    "$stopped") exec scontrol requeue "$SLURM_JOB_ID" ;; # the next turn goes on
  esac
  echo "bar_jax: ended with status $status; attempt $attempt" >&2
done
exit "$status"
