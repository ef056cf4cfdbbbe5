#!/usr/bin/env bash
# transformers 5.24.0: an attention module with the signature of 5.23 decodes wrong without a word.
#
# Decoder layers hand the cache over as `cache`. transformers' own modules are decorated to take the
# old name as well; a module that replaces one and has past_key_values and **kwargs finds None
# there, and the cache among the keywords it passes over.
# Seen: the subclass below, right in 5.23.0, stores nothing in 5.24.0.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import warnings

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()

from transformers.models.llama.modeling_llama import LlamaAttention

seen = []


class Replacement(LlamaAttention):
    def forward(self, hidden_states, position_embeddings=None, attention_mask=None,
                past_key_values=None, **kwargs):
        seen.append((past_key_values is not None, sorted(kwargs)))
        return super().forward(
            hidden_states, position_embeddings=position_embeddings,
            attention_mask=attention_mask, past_key_values=past_key_values,
        )


config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2,
)
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(config).eval()
model.model.layers[0].self_attn.__class__ = Replacement
cache = transformers.DynamicCache()
model(torch.arange(5)[None], past_key_values=cache)
print("past_key_values given:", seen[-1][0], "| other keywords:", seen[-1][1])
print("tokens in the cache:", cache.get_seq_length())
assert not seen[-1][0] and "cache" in seen[-1][1] and cache.get_seq_length() == 0, "changed"
PYTHON
