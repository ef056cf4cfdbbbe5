"""Comparing what two models say: next-token distributions, and text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..calibration.text import checked_texts, token_sequences
from ..errors import ConfigError
from ..families import refuse_encoder
from ..placement import input_device
from .cached_forward import cached_logits
from .defaults import DEFAULT_CHUNK


@torch.no_grad()
def compare_outputs(
    original: PreTrainedModel,
    converted: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 128,
    *,
    chunk_length: int = DEFAULT_CHUNK,
) -> dict[str, float]:
    """How far the next-token distributions of two models lie apart, through their caches.

    Returns:
        `kl` (nats per token, original against converted), `top1_agreement` (share of positions
        with the same most likely token), `max_logit_difference`, `num_tokens`.
    """
    kl = agreement = largest = 0.0
    num_tokens = 0
    for ids in token_sequences(tokenizer, checked_texts(texts, "texts"), max_length=max_length):
        pairs = zip(
            cached_logits(original, ids, chunk_length),
            cached_logits(converted, ids, chunk_length),
            strict=True,
        )
        for (_, first), (_, second) in pairs:
            p = torch.log_softmax(first.double().cpu(), dim=-1)
            q = torch.log_softmax(second.double().cpu(), dim=-1)
            kl += float(torch.sum(p.exp() * (p - q)))
            agreement += float((p.argmax(-1) == q.argmax(-1)).sum())
            largest = max(largest, float((first.cpu() - second.cpu()).abs().max()))
            num_tokens += p.shape[0] * p.shape[1]
    return {
        "kl": kl / num_tokens,
        "top1_agreement": agreement / num_tokens,
        "max_logit_difference": largest,
        "num_tokens": num_tokens,
    }


@torch.no_grad()
def generate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    *,
    seed: int = 0,
) -> list[str]:
    """Continue each prompt; greedy at temperature 0, otherwise sampled under `seed`.

    Returns:
        Prompt and continuation of each, without special tokens.

    Raises:
        ConfigError: a temperature or a number of tokens that makes no sense.
    """
    faults = []
    if not (math.isfinite(temperature) and temperature >= 0):
        faults.append(f"temperature={temperature} must be finite and at least 0")
    if max_new_tokens < 1:
        faults.append(f"max_new_tokens={max_new_tokens} must be at least 1")
    if faults:
        raise ConfigError("; ".join(faults))
    sampling: dict[str, bool | float] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature}
    refuse_encoder(model.config, "continuing a prompt", "call model.generate(**inputs)")
    samples = []
    for prompt in checked_texts(prompts, "prompts"):
        torch.manual_seed(seed)
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(
            **inputs.to(input_device(model)), max_new_tokens=max_new_tokens, **sampling
        )
        samples.append(tokenizer.decode(output[0], skip_special_tokens=True))
    return samples
