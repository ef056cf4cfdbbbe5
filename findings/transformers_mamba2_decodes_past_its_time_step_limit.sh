#!/usr/bin/env bash
# transformers 5.24.0: Mamba-2 applies time_step_limit to a whole text, but not token by token.
#
# The step of the plain torch path leaves the limit out, so that a model with one decodes other logits
# than it gives in one pass.
# Seen: with a limit of 0.1 the last logits differ by 0.04, with the default by rounding alone.
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

off = {}
for limit in ((0.0, float("inf")), (0.0, 0.1)):
    config = transformers.Mamba2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8,
        n_groups=1, chunk_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        time_step_limit=limit,
    )
    torch.manual_seed(0)
    model = transformers.Mamba2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.mixer.dt_bias.fill_(1.0)  # steps of 1.3, beyond the limit
        ids = torch.randint(3, 50, (1, 12))
        due = model(ids, use_cache=False).logits
        cache = transformers.DynamicCache(config=config)
        model(ids[:, :6], cache_params=cache, use_cache=True)
        for i in range(6, 12):
            last = model(ids[:, i : i + 1], cache_params=cache, use_cache=True).logits
    off[limit[1]] = float((last - due[:, -1:]).abs().max())
print("last logits, token by token against one pass:", off)
assert off[float("inf")] < 1e-5 and off[0.1] > 1e-2, "changed"
PYTHON
