"""Putting compressed modules in the places of a source model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..families import attention_at, replace_attention
from ..latents.attention.module import LatentAttention
from ..latents.attention.parts import AttentionParts
from ..latents.attention.replacement import latent_attention_class, reading_attention_class
from ..latents.plan import LatentPlan
from ..plan import CompressionPlan
from ..spec import ModelSpec
from ..states.fit.planner import StateFactors
from ..states.kinds import compressible_layers
from ..states.mixers.installation import install_mixer
from ..states.mixers.mixer import RecurrentMixer
from ..states.plan import StatePlan


@torch.no_grad()
def install_states(
    model: PreTrainedModel,
    spec: ModelSpec,
    plans: Sequence[StatePlan],
    factors: Sequence[StateFactors | None] | None = None,
    *,
    keep_source: bool = False,
) -> None:
    sources = {layer.layer_idx: layer.state for layer in compressible_layers(spec)}
    for i, plan in enumerate(plans):
        pair = None if factors is None else factors[i]
        source = sources[plan.layer_idx]
        assert source is not None
        mixer = install_mixer(
            model.get_submodule(source.module_name),
            source,
            plan,
            None if pair is None else pair.read,
            keep_source=keep_source,
        )
        if pair is not None:
            for matrix, value in ((mixer.state_write, pair.write), (mixer.state_read, pair.read)):
                if matrix is not None:  # the others are folded into the mixer's weights
                    matrix.copy_(value)
    recurrent = [layer for layer in spec.state_layers if layer.state and layer.state.state_size]
    if plans and len(plans) == len(recurrent) and spec.attention_layers:
        # States of our mixers can be taken back token by token, so assisted decoding is exact.
        # Without attention, transformers' assisted decoding does not find the cache at all.
        model._is_stateful = False


def make_attention(
    parts: AttentionParts, plan: LatentPlan, *, keep_source: bool = False
) -> LatentAttention:
    """A module for the places of `parts`, whose new projections have no values yet."""
    module = latent_attention_class(parts)(parts, plan, keep_source=keep_source)
    module.freeze_as(parts)
    return module


def install_attention(
    model: PreTrainedModel,
    parts: AttentionParts,
    module: LatentAttention,
    *,
    keep_source: bool = False,
) -> None:
    """Put a module in the places of `parts`, and others in those of the layers that read it."""
    replace_attention(model, parts.layer_ids, module)
    readers = {layer_idx: reader.source for layer_idx, reader in parts.readers.items()}
    for layer_idx, source in readers.items():
        reading: Any = reading_attention_class(source)
        replace_attention(model, (layer_idx,), reading(parts, layer_idx, keep_source=keep_source))
    # Hooks that record attention weights, or place modules on devices, stay where they were.
    for layer_idx, source in {**parts.sources, **readers}.items():
        place = attention_at(model, layer_idx)
        for name in vars(source):
            if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
                getattr(place, name).update(getattr(source, name))


def share_bases(model: PreTrainedModel, plan: CompressionPlan) -> None:
    """Let the modules of one basis group use one parameter for their bases, and tell the loader
    of transformers which names are one parameter."""
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    names: dict[tuple[int, ...], list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LatentAttention):
            names.setdefault(module.plan.layer_ids, []).append(name)
    owners: dict[int, str] = {}
    for latent in plan.latents:
        if latent.basis_group is None:
            continue
        for name in names[latent.layer_ids]:
            owner = owners.setdefault(latent.basis_group, name)
            if owner == name:
                continue
            for projection in ("k_b_proj", "v_b_proj"):
                shared = model.get_submodule(f"{owner}.{projection}")
                model.get_submodule(f"{name}.{projection}").weight = shared.weight
                tied[f"{name}.{projection}.weight"] = f"{owner}.{projection}.weight"
    model.all_tied_weights_keys = tied


def freeze_what_is_fixed(model: nn.Module) -> None:
    """Parameters that no training changes are so in a new model; transformers' loader lets all that
    it loads train, and torch multiplies by those in another order."""
    for module in model.modules():
        fixed: tuple[nn.Parameter | None, ...] = ()
        if isinstance(module, LatentAttention):
            fixed = (module.latent_costs, module.kv_mean)
        elif isinstance(module, RecurrentMixer):
            fixed = (module.state_write, module.state_read)
        for parameter in fixed:
            if parameter is not None:
                parameter.requires_grad_(False)
