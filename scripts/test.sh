#!/usr/bin/env bash
# Everything that must hold before a commit: format, lint, types, tests. Sets up its own environment.
# Arguments go to pytest, e.g. `bash scripts/test.sh tests/families -k zamba`.
CACHESHRINK_EXTRAS=dev
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# One thread per worker: more would fight over the same cores. nproc heeds OMP_NUM_THREADS.
workers="${WORKERS:-$(nproc)}"
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
ruff format --check .
ruff check .
mypy
python -m pytest -n "$workers" "$@"
