#!/usr/bin/env bash
# transformers 5.24.0: generate() fails for T5 models whose decoder has more layers than the encoder.
#
# generate() makes its cache by the config's num_hidden_layers, which in T5 is num_layers, the
# encoder's; num_decoder_layers is documented as the decoder's own number. mt5 and umt5 are alike.
# Seen: 3 and 2 layers generate, 2 and 3 end in "IndexError: list index out of range" in the cache;
# a forward pass with use_cache=True, where the decoder makes the cache itself, runs.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

ids = torch.arange(3, 9)[None]
sizes = dict(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_heads=4, decoder_start_token_id=0)
for model_type in ("t5", "mt5", "umt5"):
    ends = {}
    for encoder, decoder in ((3, 2), (2, 3)):
        config = AutoConfig.for_model(
            model_type, num_layers=encoder, num_decoder_layers=decoder, **sizes
        )
        model = AutoModelForSeq2SeqLM.from_config(config).eval()
        model(input_ids=ids, decoder_input_ids=ids, use_cache=True)
        try:
            model.generate(ids, max_new_tokens=3)
            ends[encoder, decoder] = "generates"
        except IndexError as error:
            ends[encoder, decoder] = f"IndexError: {error}"
    print(model_type, ends)
    assert ends[3, 2] == "generates" and ends[2, 3] != "generates", "changed"
PYTHON
