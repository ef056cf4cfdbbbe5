"""Making a source model a converted one, given its factors and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..checkpoint.model_names import lasting_name
from ..checkpoint.savable_model import savable_class
from ..families import model_spec
from ..latents.attention.module import LatentAttention
from ..latents.attention.parts import AttentionParts
from ..latents.fit.factors import LatentFactors
from ..latents.fit.outputs import fitted_outputs
from ..model.attached_plan import PLAN_ATTRIBUTE
from ..model.call_checks import check_calls
from ..model.folding import write_factors
from ..model.installation import install_attention, install_states, make_attention, share_bases
from ..model.original_model import keep_source_values
from ..plan import CompressionPlan
from ..states.fit.planner import StateFactors


def convert_in_place(
    model: PreTrainedModel,
    parts: list[AttentionParts],
    factors: list[LatentFactors],
    plan: CompressionPlan,
    *,
    keep_source: bool,
    state_factors: Sequence[StateFactors | None] = (),
    fitted_to: Sequence[Tensor] = (),
    progress: bool = False,
) -> None:
    """Replace the attention modules of `model` by latent ones with these factors, and its recurrent
    mixers by compressed ones.

    Args:
        parts, factors: one per entry of `plan.latents`, in the same order.
        keep_source: keep each source module or weight that is replaced, for `compression_disabled`.
        state_factors: one per entry of `plan.states`; None at full width.
        fitted_to: text, token ids (1, T) each, that output projections are fitted to again; none
            for the source's. With `keep_source` the source's values are kept beside.
        progress: show a progress bar.
    """
    modules = []
    for part, factor, latent_plan in zip(parts, factors, plan.latents, strict=True):
        modules.append(make_attention(part, latent_plan, keep_source=keep_source))
        write_factors(modules[-1], part, factor)
    outputs: list[Tensor] = []
    if fitted_to:
        outputs = fitted_outputs(model, parts, modules, fitted_to, progress=progress)
    for part, module in zip(parts, modules, strict=True):
        install_attention(model, part, module, keep_source=keep_source)
    if outputs:
        _write_outputs(model, modules, outputs, keep_source=keep_source)
    install_states(
        model, model_spec(model.config), plan.states, state_factors, keep_source=keep_source
    )
    share_bases(model, plan)
    setattr(model, PLAN_ATTRIBUTE, plan)
    source_class: Any = type(model)
    model.__class__ = savable_class(source_class)
    model.source_name = lasting_name(str(model.name_or_path))
    for stale in ("_compiled_call", "_last_compile_config"):
        model.__dict__.pop(stale, None)
    check_calls(model)


@torch.no_grad()
def _write_outputs(
    model: PreTrainedModel,
    modules: Sequence[LatentAttention],
    outputs: Sequence[Tensor],
    *,
    keep_source: bool,
) -> None:
    """Give output projections other weights (E, H*D)."""
    weights = [module.o_proj.weight for module in modules]
    if keep_source:
        keep_source_values(model, weights)
    for weight, output in zip(weights, outputs, strict=True):
        weight.copy_(output)
