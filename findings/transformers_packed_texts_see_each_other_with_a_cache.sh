#!/usr/bin/env bash
# transformers 5.24.0: texts packed into one row by position_ids are kept apart only with use_cache=False
# and without an attention_mask, else the later ones read the earlier, in silence.
#
# Positions that begin anew are taken for the borders of texts. The cache that forward makes by default,
# also in training mode, or a mask of ones as a data collator adds it, turns that off.
# Seen for the second of two texts of 10 tokens: the logits of the text alone, to rounding, with
# use_cache=False; off by 1.4 times the largest logit with the default cache, in evaluation and in
# training mode, and with a mask of ones.
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

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
)
model = transformers.LlamaForCausalLM(config).eval()
ids = torch.randint(3, 50, (1, 20))
positions = torch.arange(10).repeat(2)[None]
torch.set_grad_enabled(False)
alone = model(ids[:, 10:], use_cache=False).logits
seen = {}
for name, training, options in (
    ("use_cache=False", False, {"use_cache": False}),
    ("default", False, {}),
    ("default, training mode", True, {}),
    ("use_cache=False, mask of ones", False, {
        "use_cache": False, "attention_mask": torch.ones_like(ids)
    }),
):
    model.train(training)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = model(ids, position_ids=positions, **options).logits[:, 10:]
    seen[name] = float((found - alone).abs().max() / alone.abs().max())
    print(f"{name}: off by {seen[name]:.1e}, warnings: {len(told)}")
    assert not told
assert seen.pop("use_cache=False") < 1e-5
assert all(difference > 0.1 for difference in seen.values()), "changed"
PYTHON
