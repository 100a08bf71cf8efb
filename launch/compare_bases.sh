#!/usr/bin/env bash
# Trains a small generator on several bases, three seeds each, and prints what each run reached:
#
#   bash launch/compare_bases.sh CONFIG FOLDER [VARIANTS] [--config.FIELD=VALUE ...]
#
# CONFIG: configs/basis/digits.py (xAR), configs/basis/digits_causal.py or configs/basis/cifar10.py;
# configs/unified/digits.py or configs/unified/cifar10.py (a basis inside the tokenizer).
# VARIANTS: names below, separated by commas; all of the config's if left out or empty. Runs that
# are finished are not run again. JOBS of them run at a time (default 2), each on a core of its own.
# configs/basis and configs/unified have the tables in their READMEs.
set -euo pipefail
cd "$(dirname "$0")/.."
config=$1 folder=$2 variants=${3:-} ; shift $(($# < 3 ? $# : 3))
export OPENBLAS_NUM_THREADS=1 PYTHONPATH=$PWD
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$folder/compiled}
python=${PYTHON:-python}

variant() {  # the fields of each variant
  local basis=--config.model.basis time=--config.model.generator
  case $1 in
    identity) echo $basis.kind=identity ;;
    published_time) echo $basis.kind=identity $time.shared_time=false $time.time=logit_normal ;;
    random_orthogonal) echo $basis.kind=random_orthogonal ;;
    pca) echo $basis.kind=pca ;;
    frequency) echo $basis.kind=frequency ;;
    residual) echo $basis.kind=learned ;;
    residual_hard) echo $basis.kind=learned $basis.projection=hard ;;
    residual_none) echo $basis.kind=learned $basis.projection=none ;;
    bar) echo $basis.kind=learned $basis.objective=bar ;;
    tokens_*) # without a basis inside the tokenizer
      echo "--config.model.tokenizer.kind=bar_fsq --config.train_tokenizer.loss.residual=0" \
        "--config.train_tokenizer.loss.prefix=0 $time.rope=2d $basis.kind=${1#tokens_}" ;;
    learned) echo $basis.kind=learned ;;
    bar_hard) echo $basis.kind=learned $basis.objective=bar $basis.projection=hard ;;
    *) echo "error: variant '$1', expected one of those in launch/compare_bases.sh" >&2; return 1 ;;
  esac
}

all=identity,published_time,random_orthogonal,pca,frequency,residual,residual_hard,residual_none
all=$all,bar,bar_hard
stages=pipeline
case $config in *unified*)
  all=tokens_raster,tokens_random,identity,frequency,pca,learned
  stages="pipeline basis" ;; # the latter: what the first tokens are worth
esac
mkdir -p "$folder"
tasks=()
for seed in 0 1 2; do
  for name in ${variants:-$all}; do
    for one in ${name//,/ }; do
      variant "$one" >/dev/null
      tasks+=("$one:$seed")
    done
  done
done

lane() {  # every JOBS-th task, one after another, on one core
  local i one seed workdir job failed
  for ((i = $1; i < ${#tasks[@]}; i += jobs)); do
    one=${tasks[i]%:*} seed=${tasks[i]#*:}
    workdir=$folder/${one}_$seed
    if [ -f "$workdir/done" ]; then
      [ "$(cat "$workdir/done")" = "$config ${*:2}" ] && continue
      echo "error: $workdir is of: $(cat "$workdir/done"); give another FOLDER" >&2
      continue
    fi
    failed=
    : >"$workdir.log"
    for job in $stages; do
      # shellcheck disable=SC2046
      taskset -c $(($1 % $(nproc))) "$python" -m bar_jax.main --config="$config" \
        --workdir="$workdir" --config.seed="$seed" --config.job="$job" $(variant "$one") "${@:2}" \
        >>"$workdir.log" 2>&1 || { failed=$job && break; }
    done
    if [ -z "$failed" ]; then
      echo "$config ${*:2}" >"$workdir/done"
    else
      echo "error: $workdir failed, see $workdir.log" >&2
    fi
  done
}
jobs=${JOBS:-2}
for ((n = 0; n < jobs; n++)); do lane "$n" "$@" & done
wait
"$python" launch/bases_table.py "$folder"
