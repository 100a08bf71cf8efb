# shellcheck shell=bash
# Sourced by the scripts beside it: goes to the repository's root, makes the virtual environment
# if it is missing and defines install_bar_jax. Afterwards $python is the environment's python.

fail() { echo "bar_jax: $*" >&2; exit 1; }

venv=${BAR_JAX_VENV:-}
[[ -z $venv || $venv == /* ]] || venv=$PWD/$venv
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
venv=${venv:-$PWD/.venv}
python=$venv/bin/python

# Asks for pip: an environment whose making was cut off has none and is made again.
if ! "$python" -m pip --version > /dev/null 2>&1; then
  base=${PYTHON:-python3}
  command -v "$base" > /dev/null || fail "$base not found: set PYTHON to a Python >= 3.11"
  "$base" -c "import sys; sys.exit(sys.version_info < (3, 11))" ||
    fail "$base is $("$base" -V 2>&1), need Python >= 3.11: set PYTHON to one"
  "$base" -c "import venv, ensurepip" 2> /dev/null ||
    fail "$base cannot make virtual environments: install python3-venv (apt install python3-venv)"
  echo "bar_jax: making $venv"
  "$base" -m venv "$venv"
fi
"$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" ||
  fail "$venv has $("$python" -V 2>&1), need Python >= 3.11: remove it, set PYTHON to a newer one"

# install_bar_jax [EXTRAS]: an editable install, so that changes in the clone take effect at once.
# EXTRAS and those of BAR_JAX_EXTRAS (such as cuda) are added; nothing is done if the same were
# installed before from the same setup.py.
install_bar_jax() {
  local extras="${1:-}${1:+,}${BAR_JAX_EXTRAS:-}" stamp wanted
  extras=${extras%,}
  stamp=$venv/.bar_jax_${extras:-base}
  wanted="$PWD $(cat setup.py pyproject.toml | cksum)"
  [[ -f $stamp && $(< "$stamp") == "$wanted" ]] && return
  echo "bar_jax: installing ${extras:+[$extras] }into $venv (some minutes the first time)"
  "$python" -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
  echo "$wanted" > "$stamp"
}
