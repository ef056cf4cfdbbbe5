# Sourced by the other scripts: makes (once) and enters the project's virtual environment.
#   PYTHON  interpreter to make it with (python3)     VENV  where it lives (.venv)
#   CACHESHRINK_EXTRAS  extras to install (eval)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"
if [ ! -x "$VENV/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$VENV"
fi
# shellcheck disable=SC1091
. "$VENV/bin/activate"
stamp="$VENV/installed-${CACHESHRINK_EXTRAS:-eval}"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
    # torch first and pinned: asked for by another package it would bring its newest CUDA build.
    python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' constraints.txt)"
    python -m pip install --quiet --disable-pip-version-check \
        -c constraints.txt -e ".[${CACHESHRINK_EXTRAS:-eval}]"
    touch "$stamp"
fi
