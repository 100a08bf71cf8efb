#!/usr/bin/env bash
# Trains a small generator on several bases, three seeds each, and prints what each run reached:
#
#   bash launch/compare_bases.sh CONFIG FOLDER [VARIANTS] [--config.FIELD=VALUE ...]
#
# CONFIG: configs/basis/digits.py (xAR), configs/basis/digits_causal.py or configs/basis/cifar10.py.
# VARIANTS: names below, separated by commas; all if left out or empty. Runs that are finished are
# not run again. JOBS of them run at a time (default 2), each on a core of its own. The README has
# the tables.
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
    bar_hard) echo $basis.kind=learned $basis.objective=bar $basis.projection=hard ;;
    *) echo "error: variant '$1', expected one of those in launch/compare_bases.sh" >&2; return 1 ;;
  esac
}

all=identity,published_time,random_orthogonal,pca,frequency,residual,residual_hard,residual_none
all=$all,bar,bar_hard
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
  local i one seed workdir
  for ((i = $1; i < ${#tasks[@]}; i += jobs)); do
    one=${tasks[i]%:*} seed=${tasks[i]#*:}
    workdir=$folder/${one}_$seed
    if [ -f "$workdir/done" ]; then
      [ "$(cat "$workdir/done")" = "$config ${*:2}" ] && continue
      echo "error: $workdir is of: $(cat "$workdir/done"); give another FOLDER" >&2
      continue
    fi
    # shellcheck disable=SC2046
    if taskset -c $(($1 % $(nproc))) "$python" -m bar_jax.main --config="$config" \
      --workdir="$workdir" --config.seed="$seed" $(variant "$one") "${@:2}" \
      >"$workdir.log" 2>&1; then
      echo "$config ${*:2}" >"$workdir/done"
    else
      echo "error: $workdir failed, see $workdir.log" >&2
    fi
  done
}
jobs=${JOBS:-2}
for ((n = 0; n < jobs; n++)); do lane "$n" "$@" & done
wait
$python - "$folder" <<'PYTHON'
import collections, json, pathlib, statistics, sys

NUMBERS = (
    "generator_loss", "basis_energy_of_pca", "basis_orthogonality",
    "sample_class_accuracy", "sample_classifier_fid",
)
runs = collections.defaultdict(list)
for done in sorted(pathlib.Path(sys.argv[1]).glob("*_[0-9]/done")):
    runs[done.parent.name[:-2]].append(json.loads((done.parent / "summary.json").read_text()))
print("variant", "runs", *NUMBERS, sep="\t")
for name, found in runs.items():
    cells = []
    for number in NUMBERS:
        values = [summary[number] for summary in found if number in summary]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if values else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "-")
    print(name, len(found), *cells, sep="\t")
PYTHON
