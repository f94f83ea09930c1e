# Sourced by its neighbours. PYTHON names the interpreter; without it, the first of the usual names
# that is new enough.

# prepare_venv EXTRAS: makes .venv and installs this checkout into it, kernels compiled.
prepare_venv() {
  local extras=$1 python version candidates=(python3 python3.14 python3.13 python3.12 python3.11)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for python in "${candidates[@]}" ""; do
    if [ -z "$python" ]; then
      version=$("${candidates[0]}" --version 2>&1 || true)
      echo "jaxsparse needs Python 3.11 or newer, got ${candidates[0]} (${version:-not found})." >&2
      echo "Install one, or set PYTHON=/path/to/python3." >&2
      return 1
    fi
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
  done
  if ! command -v "${CXX:-c++}" >/dev/null; then
    echo "jaxsparse needs a C++17 compiler, got none. On Debian: apt install g++." >&2
    return 1
  fi
  if [ ! -x .venv/bin/python ]; then
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  echo "Installing jaxsparse[$extras] into .venv: downloads JAX, compiles the kernels (minutes)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check ".[$extras]"
}
