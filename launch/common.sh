# shellcheck shell=bash
# Sourced by local.sh, tpu.sh, gke.sh, slurm.sh and worker.sh: goes to the repository's root, reads
# flags, and runs commands or, with --dry-run, prints them.

# refuse MESSAGE: ends the script; the user's mistake is named in one line.
refuse() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  refuse "bash is $BASH_VERSION, expected 4.4 or newer (macOS: brew install bash)"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# Exit status of bar_jax.main when it was asked to stop and has saved: the same command goes on.
# shellcheck disable=SC2034
stopped=75
dry_run="" main_arguments=()

# parse_flags VALUED SWITCHES ARGUMENT...: --FLAG=VALUE or --FLAG VALUE sets the variable FLAG if
# the list VALUED has it; --FLAG alone sets it to "true" if SWITCHES has it (a "-" in a flag's name
# is a "_" in the variable's). What follows "--" goes to the array main_arguments.
parse_flags() {
  local _valued=" $1 " _switches=" $2 dry-run " _name _value
  shift 2
  while (($#)); do
    _name=${1#--} _name=${_name%%=*}
    case $1 in
      --) main_arguments=("${@:2}") && return ;;
      --help | -h) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;; # the comment at its top
      --*) ;;
      *) refuse "'$1' is no flag (--help lists them); arguments of bar_jax.main follow a --" ;;
    esac
    if [[ $1 != *=* && $_switches == *" $_name "* ]]; then
      _value=true
    elif [[ $_valued != *" $_name "* ]]; then
      refuse "--$_name is no flag here (--help lists them); those of bar_jax.main follow a --"
    elif [[ $1 == *=* ]]; then
      _value=${1#*=}
    else
      [[ ${2:---} != --* ]] || refuse "--$_name has no value, expected --$_name=VALUE"
      _value=$2 && shift
    fi
    printf -v "${_name//-/_}" %s "$_value"
    shift
  done
}

# need_step STEPS ARGUMENT...: refuses a first argument that is no step, unless it asks for help.
need_step() {
  [[ ${2:---help} == --help ]] && parse_flags "" "" --help
  [[ " $1 " == *" $2 "* ]] || refuse "the step is '$2', expected one of: $1"
}

# need_number FLAG VALUE LOWEST: refuses what is not a whole number from LOWEST on.
need_number() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then
    refuse "--$1 is '$2', expected a whole number from $3 on"
  fi
}

# need_name FLAG VALUE: refuses what clouds do not take as a name.
need_name() {
  [[ $2 =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    refuse "--$1 is '$2', expected up to 40 lower-case letters, digits and '-', the first a letter"
}

# need_main FOLDER: sets workdir to that of main_arguments, which has to lie in FOLDER (with a /).
need_main() {
  local before="" each config=""
  workdir=""
  for each in "${main_arguments[@]}"; do
    [[ ! $before =~ ^--(config|workdir)$ ]] || each=$before=$each # --FLAG VALUE
    case $each in
      --config=*) config=${each#*=} ;;
      --workdir=*) workdir=${each#*=} ;;
    esac
    before=$each
  done
  [[ -n $config && -n $workdir ]] ||
    refuse "arguments of bar_jax.main, expected -- --config=configs/NAME.py --workdir=DIR [...]"
  [[ $workdir == "$1"?* ]] ||
    refuse "--workdir is '$workdir', expected a folder that all machines see: $1FOLDER"
}

# quoted ARGUMENT...: one line that a shell reads back as these arguments.
quoted() {
  local argument line=""
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || argument="'${argument//\'/\'\\\'\'}'"
    line+=" $argument"
  done
  printf '%s\n' "${line:1}"
}

# run COMMAND...: runs it, or prints it if this is a dry run.
run() {
  if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}
