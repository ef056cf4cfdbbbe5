#!/usr/bin/env bash
# lm-eval 0.4.13: where a continuation begins within a token of the whole text, its log-likelihood is
# that of another text, in silence.
#
# HFLM encodes context + continuation, and takes as many tokens from its end as remain after those of
# the context alone. Where the last token of the context and the first characters of the continuation
# are one token together, the model is shown the context's shorter token and is asked for what comes
# behind the merged one: those two never stand side by side, and the merged part is not scored.
# Seen: context "beg i", continuation "n a": scored is " a" behind "beg", " i".
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 lm_eval==0.4.13 accelerate==1.15.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
import warnings

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, decoders

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: number for number, token in enumerate([*alphabet, "Ġi", "Ġin", "Ġa"])}
tokens = Tokenizer(models.BPE(vocabulary, [("Ġ", "i"), ("Ġi", "n"), ("Ġ", "a")]))
tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokens.decoder = decoders.ByteLevel()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="!")
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=len(vocabulary), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, initializer_range=0.3,
)
model = transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def log_likelihood(context, continuation):
    logits = model(torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)
    first = len(context) - 1
    return sum(float(logits[first + i, token]) for i, token in enumerate(continuation))


whole, context = tokenizer("beg in a").input_ids, tokenizer("beg i").input_ids
print("tokens:", tokenizer.convert_ids_to_tokens(whole), tokenizer.convert_ids_to_tokens(context))
merged, last = whole[len(context) - 1 : len(context)], whole[len(context) :]
scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
request = Instance(request_type="loglikelihood", doc={}, arguments=("beg i", "n a"), idx=0)
found = scorer.loglikelihood([request], disable_tqdm=True)[0][0]
print(f"lm-eval: {found:.4f}")
print(f"' a' behind 'beg', ' i': {log_likelihood(context, last):.4f}")
print(f"' in', ' a' behind 'beg': {log_likelihood(whole[: len(context) - 1], merged + last):.4f}")
assert abs(found - log_likelihood(context, last)) < 1e-4
assert abs(found - log_likelihood(whole[: len(context) - 1], merged + last)) > 0.1
PYTHON
