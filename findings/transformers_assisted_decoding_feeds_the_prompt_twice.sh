#!/usr/bin/env bash
# transformers 5.24.0: assisted decoding that is given a cache with tokens in it feeds the whole prompt
# again behind them, and generates other tokens, in silence.
#
# generate() without assistance, given the prompt and a cache that holds its beginning, feeds the rest.
# Seen with 40 tokens, 30 of them in the cache: 10 are fed without assistance, and tokens and length of
# the cache (47) are those of an empty one. With prompt_lookup_num_tokens or an assistant model 40 and
# the first draft are fed, other tokens come out, and the cache holds 77. With an empty cache all agree.
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
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, eos_token_id=None,
)
model = transformers.LlamaForCausalLM(config).eval()
prompt = torch.randint(3, 50, (1, 20)).repeat(1, 2)
NEW = 8


@torch.no_grad()
def generated(num_cached, **options):
    """The new tokens, and how many the cache holds in the end."""
    cache = transformers.DynamicCache(config=config)
    if num_cached:
        model(prompt[:, :num_cached], cache=cache)
    found = model.generate(prompt, cache=cache, max_new_tokens=NEW, do_sample=False, **options)
    return found[0, prompt.shape[1] :].tolist(), cache.get_seq_length()


expected = generated(0)
assert expected[1] == 47 and generated(30) == expected
for name, options in (
    ("prompt lookup", {"prompt_lookup_num_tokens": 3}),
    ("assistant", {"assistant_model": model}),
):
    empty, begun = generated(0, **options), generated(30, **options)
    print(f"{name}: cache of {empty[1]} from an empty one, {begun[1]} from one with 30 tokens")
    print("  tokens expected:", expected[0], "| found:", begun[0])
    assert empty == expected
    assert begun[1] == 77 and begun[0] != expected[0], "changed"
PYTHON
