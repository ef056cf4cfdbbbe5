"""A converted model as a DeepSeek-V3 checkpoint, which engines load without this package.

What a layer computes is what DeepSeek's attention computes, once weights are multiplied out:
queries have absorbed the rotary key's basis, the latent's norm is given inputs so small that it
divides by the root of its epsilon alone, and the stream between layers is scaled so that this
epsilon is that of all norms.
Whether all of it holds is not left to a list of families: the finished model is run
beside the converted one before it is written.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from transformers import DeepseekV3ForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoint.files import check_target, draft_of
from ..errors import CacheShrinkWarning, UnsupportedModelError
from ..latents.attention.module import LatentAttention
from ..model.adapters import refuse_adapters
from ..model.attached_plan import plan_of
from .deepseek_config import Widths, deepseek_config, widths_of
from .deepseek_weights import deepseek_weights
from .refusals import check_exportable

PROBE_TOKENS = 24
LARGEST_DIFFERENCE = 2e-4
"""Of logits, in units of their mean size where that exceeds one; of float32 models."""
COARSE_DIFFERENCE = 0.1
"""The same of models in bfloat16."""
KERNELS: dict[str, set[tuple[int, int]] | None] = {
    "transformers": None,
    "Triton MLA of vLLM and SGLang": None,
    "FlashMLA, FlashAttention MLA and CPUs of vLLM": {(512, 64)},
}
"""Engines and the (kv_lora_rank, qk_rope_head_dim) that their kernels take; None for any."""


@torch.no_grad()
def export_deepseek(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    pad_to: tuple[int, int] | None = None,
) -> DeepseekV3ForCausalLM:
    """Write a converted model as a checkpoint of `DeepseekV3ForCausalLM`, and return that model.

    Args:
        model: converted with `compression_method="decoupled_rope"`; or one whose layers do not
            rotate their keys, with latents of 16 bits.
        directory: without another model in it.
        tokenizer: goes along.
        pad_to: kv_lora_rank and qk_rope_head_dim of the checkpoint, filled up with zeros, for
            kernels that take certain widths only, such as (512, 64); None for the model's own.

    Raises:
        UnsupportedModelError: what DeepSeek's format cannot say, by name.
        CheckpointError: a directory that cannot be written to, or has another model.
        PlanError: `pad_to` below the model's own widths.
    """
    plan_of(model)
    refuse_adapters(model, "exporting")
    layers = check_exportable(model)
    target = Path(directory).expanduser().resolve()
    check_target(target)
    widths = widths_of(layers, pad_to)
    config = deepseek_config(model, layers, widths)
    with torch.device("meta"):
        made = DeepseekV3ForCausalLM(config)
    rotation = made.model.rotary_emb.__class__(config)
    made.load_state_dict(deepseek_weights(model, layers, widths), assign=True)
    made.model.rotary_emb = rotation.to(model.device)
    made.generation_config = model.generation_config
    made.eval()
    _check_same(model, made)
    _warn_of_widths(layers, widths)
    with draft_of(target) as draft:
        made.save_pretrained(draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
    return made


def _check_same(model: PreTrainedModel, made: PreTrainedModel) -> None:
    """Raise unless both models give the same logits for some tokens."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (1, PROBE_TOKENS), generator=generator).to(model.device)
    was_training = model.training
    model.eval()
    try:
        due, found = (one(ids, use_cache=False).logits.float() for one in (model, made))
    finally:
        model.train(was_training)
    difference = float((found - due).abs().max() / max(1.0, float(due.abs().mean())))
    limit = LARGEST_DIFFERENCE if made.dtype == torch.float32 else COARSE_DIFFERENCE
    if not difference <= limit:
        raise UnsupportedModelError(
            f"as a DeepSeek checkpoint this {model.config.model_type} model gives logits that "
            f"differ by {difference:.3g} where {limit:g} is allowed, so its family computes "
            "something that DeepSeek's layers do not; nothing was written; serve it with this "
            "package"
        )


def _warn_of_widths(layers: list[LatentAttention], widths: Widths) -> None:
    """Say which engines take these widths, where some do not, and what padding takes."""
    taken = (widths.kv_lora_rank, widths.qk_rope_head_dim)
    takers = [name for name, known in KERNELS.items() if known is None or taken in known]
    stored = sum(sum(widths.own(layer)) for layer in layers) / len(layers)
    notes = []
    if len(takers) < len(KERNELS):
        notes.append(
            f"kv_lora_rank={taken[0]} and qk_rope_head_dim={taken[1]} are read by "
            f"{' and '.join(takers)}; for {next(iter(set(KERNELS) - set(takers)))} give "
            "pad_to=(512, 64)"
        )
    if stored < sum(taken):
        notes.append(
            f"the checkpoint has {sum(taken)} values per token in every layer, of which "
            f"{stored:.1f} on average are not zero"
        )
    for note in notes:
        warnings.warn(note, CacheShrinkWarning, stacklevel=4)
