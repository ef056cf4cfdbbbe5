"""A model's attention modules, taken apart and replaced, as its family's row says."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import UnsupportedModelError
from ..latents.attention.normed_parts import NormedParts
from ..latents.attention.parts import AttentionParts, Projection, ReaderParts
from ..latents.attention.plain_rotary import PlainRotary
from ..latents.attention.relative_bias import BiasedParts
from ..latents.attention.rotation import (
    in_halves,
    of_both,
    of_first_channels,
    turn_halves_of_both,
)
from ..latents.attention.slot_rotary import SlotRotary
from ..spec import AttentionSpec, ModelSpec
from .family import Family
from .layers import family_of
from .native import native_parts
from .vision import TEXT_MODELS, text_config_of

RESIDUAL_DROPOUTS = ("resid_dropout", "residual_dropout", "out_drop")
DROPOUTS = ("attention_dropout", "dropout", "attn_dropout", *RESIDUAL_DROPOUTS)
"""Attributes of attention modules of transformers that hold a dropout, as a number or a module."""
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def read_attention(model: PreTrainedModel, spec: ModelSpec) -> list[AttentionParts]:
    """Take the model's attention modules apart, one entry per set of weights, in layer order.

    Raises:
        UnsupportedModelError: if a module is not built as its family's row says.
    """
    family = family_of(model.config)
    return _read(model, family, spec, lambda idx: _submodule(model, family.attention_path(idx)))


def read_cross_attention(model: PreTrainedModel, spec: ModelSpec) -> list[AttentionParts]:
    """As `read_attention`, of the attention over what an encoder puts out; none without one."""
    if spec.cross is None:
        return []
    family = family_of(model.config).of_cross_attention
    return _read(
        model, family, spec.cross, lambda idx: _submodule(model, family.attention_path(idx))
    )


def read_source_attention(model: PreTrainedModel, spec: ModelSpec) -> list[AttentionParts]:
    """As `read_attention`, of the source attention that a converted model keeps beside its latent
    one (`store_original_weights=True`); modules that were not converted are left out."""
    return _read(
        model,
        family_of(model.config),
        spec,
        lambda idx: getattr(attention_at(model, idx), "source_attention", None),
    )


def _read(
    model: PreTrainedModel,
    family: Family,
    spec: ModelSpec,
    source_of: Callable[[int], nn.Module | None],
) -> list[AttentionParts]:
    parts = []
    rotaries: dict[tuple, SlotRotary] = {}
    for layers in spec.shared_modules().values():
        found = {layer.layer_idx: source_of(layer.layer_idx) for layer in layers}
        sources = {idx: source for idx, source in found.items() if source is not None}
        if sources:
            assert layers[0].attention is not None
            part = _take_apart(model, family, sources, layers[0].attention, rotaries)
            reading = {idx: source_of(idx) for idx in spec.readers_of(layers[0].layer_idx)}
            readers = {
                idx: _reader(part, source, model.config, idx)
                for idx, source in reading.items()
                if source is not None
            }
            parts.append(replace(part, readers=readers))
    return parts


def _reader(
    part: AttentionParts, source: nn.Module, config: PretrainedConfig, layer_idx: int
) -> ReaderParts:
    """A module that reads what another one, `part`, stores, of a model of this config.

    Raises:
        UnsupportedModelError: it does not read as that one does, or has keys of its own.
    """
    family, text = family_of(config), text_config_of(config)
    try:
        query = Projection(part.query.name, getattr(source, part.query.name))
        output = getattr(source, family.output)
        names = _norms(text, family)
        q_norm = getattr(source, names[0]) if names else None
    except AttributeError as error:
        raise _unlike_row(family, layer_idx, str(error)) from error
    if hasattr(source, part.key.name):
        raise _unlike_row(family, layer_idx, f"it has a {part.key.name} of its own")
    for name, own, due in (
        ("rows of queries", len(query.weight()), len(part.query.weight())),
        ("a scaling of", _scaling(family, source), part.scaling),
    ):
        if own != due:
            raise _unlike_row(
                family, layer_idx, f"{name} {own}, {due} in layer {part.layer_ids[0]}"
            )
    _check_dropouts(family, source, layer_idx)
    return ReaderParts(
        source=source,
        query=query,
        output=output,
        q_norm=q_norm,
        dropout=_dropout(family, source),
        residual_dropout=_residual_dropout(source),
    )


def check_shared_weights(parts: list[AttentionParts]) -> None:
    """Raise `UnsupportedModelError` if layers that should share one module's weights do not."""
    for part in parts:
        for layer_idx, source in part.sources.items():
            key = getattr(source, part.key.name)
            if key is not part.key.module and key.weight is not part.key.module.weight:
                raise UnsupportedModelError(
                    f"layers {part.layer_ids[0]} and {layer_idx} should share their attention "
                    "weights, but do not; call model.tie_weights() first"
                )


def _take_apart(
    model: PreTrainedModel,
    family: Family,
    sources: dict[int, nn.Module],
    spec: AttentionSpec,
    rotaries: dict[tuple, SlotRotary],
) -> AttentionParts:
    """The module of these layers.

    Args:
        family: the row of such modules.
        rotaries: of the layers before them, by what the rotary embedding is asked for.
    """
    layer_idx, source = next(iter(sources.items()))
    if family.caches_latents:
        rotary = _rotary(model, source, layer_idx, rotaries) if spec.uses_rope else None
        try:
            return native_parts(family, sources, text_config_of(model.config), spec, rotary)
        except AttributeError as error:
            raise _unlike_row(family, layer_idx, str(error)) from error
    H, J, D = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
    try:
        query, key, value = family.projections(source, H, J, D)
        output = getattr(source, family.output)
        gate = None if family.gate is None else getattr(source, family.gate)
        output_norm = None if family.output_norm is None else getattr(source, family.output_norm)
        names = _norms(text_config_of(model.config), family) if _has_norms(family, spec) else ()
        norms = [getattr(source, name) for name in names]
    except AttributeError as error:
        raise _unlike_row(family, layer_idx, str(error)) from error
    q_norm, k_norm = norms or (None, None)
    due = {"query": H * D * (2 if family.gated else 1), "key": J * D, "value": J * D}
    for name, projection in (("query", query), ("key", key), ("value", value)):
        rows = projection.weight().shape[0]
        if rows != due[name]:
            raise _unlike_row(family, layer_idx, f"{name} has {rows} rows, {due[name]} are due")
    _check_dropouts(family, source, layer_idx)
    if family.neighbours is not None and spec.uses_rope:
        width = family.neighbours(text_config_of(model.config))
        query, key = (_in_halves(x, D, width) for x in (query, key))
    hidden_window = family.hidden_window(text_config_of(model.config), layer_idx)
    cls: type[AttentionParts] = AttentionParts
    of_norms: dict[str, Any] = {"k_norm": k_norm}
    if family.value_norm is not None and k_norm is not None:
        assert family.norms is not None
        cls, of_norms = NormedParts, {"cached_norms": (family.norms[1], family.value_norm)}
    of_bias: dict[str, Any] = {}
    if family.bias_table is not None:
        cls = BiasedParts
        of_bias = {
            "bias_table": getattr(source, family.bias_table, None),
            "max_distance": source.relative_attention_max_distance,
        }
    return cls(
        sources=sources,
        model_config=text_config_of(model.config),
        num_attention_heads=H,
        num_key_value_heads=J,
        head_dim=D,
        query=query,
        key=key,
        value=value,
        output=output,
        output_norm=output_norm,
        gated=family.gated,
        gate=gate,
        query_scale=None if family.query_scale is None else family.query_scale(source),
        scales_by_slot=family.scales_by_slot,
        q_norm=q_norm,
        **of_norms,
        **of_bias,
        norm_spans_heads=family.norm_spans_heads,
        norms_follow_rotation=family.norms_follow_rotation,
        key_multiplier=float(getattr(source, "key_multiplier", 1.0)),
        scaling=_scaling(family, source),
        softcap=getattr(source, "attn_logit_softcapping", None),
        sinks=getattr(source, "sinks", None),
        crosses=family.crosses,
        sliding_window=spec.sliding_window or hidden_window,
        in_chunks=spec.in_chunks,
        narrows_mask=hidden_window is not None,
        dropout=_dropout(family, source),
        residual_dropout=_residual_dropout(source),
        rotary=_rotary(model, source, layer_idx, rotaries) if spec.uses_rope else None,
        adapters=_adapters(source, sources),
    )


def _scaling(family: Family, source: nn.Module) -> float:
    found = family.scaling
    return float(getattr(source, found) if isinstance(found, str) else found(source))


def _in_halves(projection: Projection, head_dim: int, width: int) -> Projection:
    """A projection whose heads have the first `width` channels in halves instead of in pairs."""
    rows = projection.rows
    rows = torch.arange(len(projection.weight())) if rows is None else rows
    heads = rows.view(-1, head_dim)
    order = torch.cat([in_halves(heads[:, :width]), heads[:, width:]], dim=1)
    return Projection(projection.name, projection.module, order.flatten())


def _has_norms(family: Family, spec: AttentionSpec) -> bool:
    return spec.uses_rope or not family.norms_with_rope


def _norms(config: PretrainedConfig, family: Family) -> tuple[str, ...]:
    """Names of the norms of queries and keys, or none."""
    if family.norms is None or (family.norms_if and not getattr(config, family.norms_if)):
        return ()
    return family.norms


def _check_dropouts(family: Family, source: nn.Module, layer_idx: int) -> None:
    held = {*vars(source), *(name for name, _ in source.named_children())}
    known = {*DROPOUTS, *family.idle_dropouts}
    known |= {name.replace("dropout", "pdrop") for name in known & held}  # their numbers
    unread = sorted(name for name in held if "drop" in name and name not in known)
    if unread:
        raise _unlike_row(family, layer_idx, f"{', '.join(unread)} is a dropout of another name")


def _dropout(family: Family, source: nn.Module) -> float:
    for name in ("attention_dropout", "dropout", "attn_dropout"):
        if hasattr(source, name) and name not in family.idle_dropouts:
            found = getattr(source, name)
            return float(found.p if isinstance(found, nn.Module) else found)
    return 0.0


def _residual_dropout(source: nn.Module) -> nn.Module | None:
    for name in RESIDUAL_DROPOUTS:
        if hasattr(source, name):
            found = getattr(source, name)
            return found if isinstance(found, nn.Module) else nn.Dropout(found)
    return None


def _rotary(
    model: PreTrainedModel,
    source: nn.Module,
    layer_idx: int,
    rotaries: dict[tuple, SlotRotary],
) -> SlotRotary:
    """The rotation of a layer, one for all layers that are rotated alike."""
    family, config = family_of(model.config), text_config_of(model.config)
    path = family.rotary(config, layer_idx)
    in_order = of_first_channels(turn_halves_of_both)
    if family.own_angles:
        assert family.neighbours is not None
        own = SlotRotary(PlainRotary(family.neighbours(config)), in_order, is_own=True)
        return rotaries.setdefault((path,), own)
    text_model = model.base_model
    if family.text_model is not None:
        text_model = model.get_submodule(family.text_model)
    rotary_emb: Any = _submodule(text_model, path)
    extra = (config.layer_types[layer_idx],) if family.rope_by_layer_type else ()
    rope_type = rotary_emb.rope_type
    if extra:
        rope_type = rope_type[extra[0]]
    if family.caches_latents or family.neighbours is not None:
        apply = in_order
    else:
        apply = sys.modules[type(source).__module__].apply_rotary_pos_emb
        apply = of_both(apply) if family.rotates_apart else apply
        apply = of_first_channels(apply) if family.rotates_first else apply
    rotary = SlotRotary(
        rotary_emb,
        apply,
        extra=extra,
        position_axes=family.position_axes,
        depends_on_length=rope_type in LENGTH_DEPENDENT_ROPE,
    )
    return rotaries.setdefault((path, extra), rotary)


def _adapters(source: nn.Module, sources: dict[int, nn.Module]) -> dict:
    """Per-layer low-rank additions of a shared module (Zamba2), by cache layer."""
    if not hasattr(source, "linear_q_adapter_list"):
        return {}
    lists = [getattr(source, f"linear_{name}_adapter_list") for name in "qkv"]
    return {
        layer_idx: tuple(adapters[source.layer_dic[layer_idx]] for adapters in lists)
        for layer_idx in sources
    }


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        config: Any = getattr(model, "config", None)
        if getattr(config, "model_type", None) in TEXT_MODELS:
            raise UnsupportedModelError(
                f"{text_config_of(config).model_type!r}, the text model inside of this "
                f"{config.model_type!r} model, is not built as it is alone: there is no module "
                f"{path!r}; convert the text model alone"
            ) from error
        raise UnsupportedModelError(
            f"the model has no module {path!r}, where its family keeps it; convert a "
            "plain causal language model (AutoModelForCausalLM)"
        ) from error


def attention_at(model: PreTrainedModel, layer_idx: int, *, crosses: bool = False) -> nn.Module:
    """The attention module of one cache layer, converted or not.

    Args:
        crosses: that over what an encoder puts out.
    """
    return _submodule(model, _row_of(model, crosses).attention_path(layer_idx))


def _row_of(model: PreTrainedModel, crosses: bool) -> Family:
    family = family_of(model.config)
    return family.of_cross_attention if crosses else family


def _unlike_row(family: Family, layer_idx: int, detail: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"attention of layer {layer_idx} is not built as the row of {family.model_type!r} says: "
        f"{detail}; was the model converted or patched before?"
    )


def replace_attention(
    model: PreTrainedModel, layer_ids: tuple[int, ...], new: nn.Module, *, crosses: bool = False
) -> None:
    """Put one new module in the place of the attention of all `layer_ids`.

    Args:
        crosses: of that over what an encoder puts out.
    """
    family = _row_of(model, crosses)
    for layer_idx in layer_ids:
        parent, _, name = family.attention_path(layer_idx).rpartition(".")
        place = new if layer_idx == layer_ids[0] else _alias(new)
        setattr(model.get_submodule(parent), name, place)


def _alias(module: nn.Module) -> nn.Module:
    """A module with the weights and sub-modules of another, and hooks of its own, so that a hook
    that is registered at each place in the model runs once per call."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if "_hooks" in name:
            setattr(twin, name, copy.copy(value))
    return twin
