"""The plan that a converted model carries. A config may be shared by several models, converted or
not, so the plan is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from ..certificate import Certificate
from ..errors import NotSupportedError, PlanError, UnsupportedModelError
from ..plan import CompressionPlan
from ..states.mixers.mixer import RecurrentMixer
from ..states.plan import StatePlan

PLAN_ATTRIBUTE = "cacheshrink_plan"
"""Attribute of a converted model: its plan."""


def plan_of(model: PreTrainedModel) -> CompressionPlan:
    """The plan of a converted model.

    Raises:
        UnsupportedModelError: if the model was not converted.
    """
    plan = getattr(model, PLAN_ATTRIBUTE, None)
    if plan is None:
        raise UnsupportedModelError(
            f"this {type(model).__name__} is not converted; run convert_to_mla or load_mla_model"
        )
    return plan


def is_converted(model: PreTrainedModel) -> bool:
    return getattr(model, PLAN_ATTRIBUTE, None) is not None


def refuse_head_groups(model: PreTrainedModel, purpose: str) -> None:
    """Refuse a converted model whose groups of heads have latents of their own.

    Args:
        purpose: what it was given for, such as "training".

    Raises:
        NotSupportedError: naming the setting.
    """
    groups = plan_of(model).head_groups
    if groups > 1:
        raise NotSupportedError(
            f"{purpose} does not keep apart the latents of {groups} groups of heads; convert with "
            "head_groups=1 for that"
        )


def attach_certificate(model: PreTrainedModel, certificate: Certificate | None) -> None:
    """What the model as it is now was measured to cost; None once its weights or codes are no
    longer those that were measured."""
    setattr(model, PLAN_ATTRIBUTE, replace(plan_of(model), certificate=certificate))


def set_state_plans(model: PreTrainedModel, plans: Sequence[StatePlan]) -> None:
    """Let a converted model store its states in other codes or with another replay length; its
    caches are made anew. Ranks and channels are those of its weights and stay."""
    plan = plan_of(model)
    for old, new in zip(plan.states, plans, strict=True):
        if (old.layer_idx, old.ranks, old.channels) != (new.layer_idx, new.ranks, new.channels):
            raise PlanError(
                f"layer {old.layer_idx} has ranks {old.ranks} and layer {new.layer_idx} is to have "
                f"{new.ranks}; only codes and replay lengths can change after a conversion"
            )
    mixers = {
        module.layer_idx: module for module in model.modules() if isinstance(module, RecurrentMixer)
    }
    for new in plans:
        mixers[new.layer_idx].use_plan(new)
    setattr(model, PLAN_ATTRIBUTE, replace(plan, states=tuple(plans), certificate=None))
