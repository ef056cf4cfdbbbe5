#!/usr/bin/env bash
# Everything that must hold before a commit: format, lint, types, tests, and a selection of tests on
# the oldest transformers that pyproject.toml admits. Sets up its own environment.
#   bash scripts/test.sh --quick                      in a minute and a half: what is left out is said
#   bash scripts/test.sh tests/families -k zamba      other arguments go to pytest
# Any argument leaves the selection on the oldest transformers out.
CACHESHRINK_EXTRAS=dev
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# One thread per worker: more would fight over the same cores. nproc heeds OMP_NUM_THREADS.
workers="${WORKERS:-$(nproc)}"
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Workers and the processes that tests start read bytecode again, pytest's of the tests as well.
unset PYTHONDONTWRITEBYTECODE
# Groups are those of tests/conftest.py, which also brings the slow ones to the front.
in_groups=(-n "$workers" --dist loadgroup --no-loadscope-reorder --durations=25)
ruff format --check .
ruff check .
mypy
python -m pytest "${in_groups[@]}" "$@"
if [ $# -eq 0 ]; then
    # The oldest release lies on the path before the environment's own; everything else is the same.
    EXPECTED_TRANSFORMERS="$(sed -n 's/.*"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)"
    export EXPECTED_TRANSFORMERS PYTHONPATH="$VENV/transformers-$EXPECTED_TRANSFORMERS"
    [ -d "$PYTHONPATH" ] || python -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$PYTHONPATH" "transformers==$EXPECTED_TRANSFORMERS"
    python -m pytest "${in_groups[@]}" tests/test_transformers_release.py \
        tests/test_cache_argument.py tests/families tests/engine/test_llm.py \
        -k "release or argument or llm or llama or gpt_neox or bamba or jamba or mamba2 or qwen3_next"
fi
