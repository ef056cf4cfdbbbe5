"""Making a source model a converted one, given its factors and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..checkpoint.model_names import lasting_name
from ..checkpoint.savable_model import savable_class
from ..families import model_spec
from ..latents.attention.parts import AttentionParts
from ..latents.fit.factors import LatentFactors
from ..model.attached_plan import PLAN_ATTRIBUTE
from ..model.call_checks import check_calls
from ..model.folding import write_factors
from ..model.installation import install_attention, install_states, share_bases
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
) -> None:
    """Replace the attention modules of `model` by latent ones with these factors, and its recurrent
    mixers by compressed ones.

    Args:
        parts, factors: one per entry of `plan.latents`, in the same order.
        keep_source: keep each source module or weight that is replaced, for `compression_disabled`.
        state_factors: one per entry of `plan.states`; None at full width.
    """
    for part, factor, latent_plan in zip(parts, factors, plan.latents, strict=True):
        module = install_attention(model, part, latent_plan, keep_source=keep_source)
        write_factors(module, part, factor)
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
