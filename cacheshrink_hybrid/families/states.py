"""What the recurrent layers of each family keep per sequence, read from a config alone.

A kind of mixer is one function from a config to the sizes of its state; a family names its kind and
where its mixers are. Families that are listed here but not in `rows.FAMILIES` are known by their
layout only: their bytes can be counted, they are not converted (`unconverted.REFUSED` says why).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from ..spec import PLAIN_FORM, MixerForm, StateSpec
from .family import Family
from .vision import placed

Sizes = Callable[[PretrainedConfig], dict[str, Any]]


def _first(config: PretrainedConfig, *names: str, default: Any = None) -> Any:
    """The first of these attributes that is set; sub-dicts are not searched."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return default


def mamba2_sizes(config: PretrainedConfig) -> dict[str, Any]:
    heads = _first(config, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    width = _first(config, "mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")
    groups = _first(config, "mamba_n_groups", "mamba_ngroups", "n_groups")
    size = _first(config, "mamba_d_state", "ssm_state_size", "state_size")
    return {
        "num_heads": heads,
        "head_dim": width,
        "state_size": size,
        "num_groups": groups,
        "conv_channels": heads * width + 2 * groups * size,
        "conv_kernel": _first(config, "mamba_d_conv", "conv_kernel"),
        "recurrent_shape": (heads, width, size),
    }


def mamba_sizes(config: PretrainedConfig) -> dict[str, Any]:
    expand = _first(config, "mamba_expand", "expand")
    channels = _first(config, "mamba_inner_size", "intermediate_size")
    if config.model_type not in ("mamba", "falcon_mamba"):
        channels = int(expand * config.hidden_size)
    heads = _first(config, "n_mamba_heads")
    size = _first(config, "mamba_d_state", "state_size")
    return {
        "num_heads": heads or 1,
        "head_dim": channels // (heads or 1),
        "state_size": size,
        "num_groups": heads or 1,
        "conv_channels": channels,
        "conv_kernel": _first(config, "mamba_d_conv", "conv_kernel"),
        "recurrent_shape": (heads, channels // heads, size) if heads else (channels, size),
    }


def gated_delta_net_sizes(config: PretrainedConfig) -> dict[str, Any]:
    key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    key_dim, value_dim = config.linear_key_head_dim, config.linear_value_head_dim
    return {
        "num_heads": value_heads,
        "head_dim": value_dim,
        "state_size": key_dim,
        "num_groups": key_heads,
        "conv_channels": 2 * key_heads * key_dim + value_heads * value_dim,
        "conv_kernel": config.linear_conv_kernel_dim,
        "recurrent_shape": (value_heads, key_dim, value_dim),
    }


def kimi_delta_sizes(config: PretrainedConfig) -> dict[str, Any]:
    heads, width = config.linear_num_heads, config.linear_head_dim
    return {
        "num_heads": heads,
        "head_dim": width,
        "state_size": width,
        "num_groups": heads,
        "conv_channels": 3 * heads * width,
        "conv_kernel": config.linear_conv_kernel_dim,
        "recurrent_shape": (heads, width, width),
    }


def short_conv_sizes(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "num_heads": 0,
        "head_dim": 0,
        "state_size": 0,
        "num_groups": 0,
        "conv_channels": config.hidden_size,
        "conv_kernel": config.conv_L_cache,
        "recurrent_shape": (),
    }


def rg_lru_sizes(config: PretrainedConfig) -> dict[str, Any]:
    width = _first(config, "lru_width", "hidden_size")
    return {
        "num_heads": 1,
        "head_dim": width,
        "state_size": 1,
        "num_groups": 1,
        "conv_channels": width,
        "conv_kernel": config.conv1d_width,
        "recurrent_shape": (width,),
    }


SIZES: dict[str, Sizes] = {
    "mamba2": mamba2_sizes,
    "mamba": mamba_sizes,
    "gated_delta_net": gated_delta_net_sizes,
    "kimi_delta": kimi_delta_sizes,
    "short_conv": short_conv_sizes,
    "rg_lru": rg_lru_sizes,
}
"""Kinds of recurrent mixers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerRow:
    """Where a family keeps its mixers.

    Attributes:
        kind: one of `SIZES`.
        path: path of layer i's mixer in the model, with `{}` for i.
        hybrid_path: the same in layers that also have attention; None for `path`.
        form: how they are built, where they differ from others of their kind.
    """

    kind: str
    path: str
    hybrid_path: str | None = None
    form: MixerForm = PLAIN_FORM


MIXERS: dict[str, MixerRow] = {
    "mamba": MixerRow(kind="mamba", path="backbone.layers.{}.mixer"),
    "falcon_mamba": MixerRow(
        kind="mamba", path="backbone.layers.{}.mixer", form=MixerForm(inner_norms=True)
    ),
    "jamba": MixerRow(kind="mamba", path="model.layers.{}.mamba", form=MixerForm(inner_norms=True)),
    "zamba": MixerRow(
        kind="mamba",
        path="model.layers.{}.mamba",
        hybrid_path="model.layers.{}.mamba_decoder.mamba",
        form=MixerForm(several_scans=True),
    ),
    "mamba2": MixerRow(kind="mamba2", path="backbone.layers.{}.mixer"),
    "bamba": MixerRow(kind="mamba2", path="model.layers.{}.mamba"),
    "falcon_h1": MixerRow(
        kind="mamba2",
        path="model.layers.{}.mamba",
        form=MixerForm(multipliers=True, optional_norm=True),
    ),
    "granitemoehybrid": MixerRow(kind="mamba2", path="model.layers.{}.mamba"),
    "nemotron_h": MixerRow(kind="mamba2", path="model.layers.{}.mixer"),
    "zamba2": MixerRow(
        kind="mamba2",
        path="model.layers.{}.mamba",
        hybrid_path="model.layers.{}.mamba_decoder.mamba",
    ),
    "qwen3_next": MixerRow(
        kind="gated_delta_net",
        path="model.layers.{}.linear_attn",
        form=MixerForm(projections="by_head"),
    ),
    "qwen3_5_text": MixerRow(
        kind="gated_delta_net",
        path="model.layers.{}.linear_attn",
        form=MixerForm(projections="joined"),
    ),
    "qwen3_5_moe_text": MixerRow(
        kind="gated_delta_net",
        path="model.layers.{}.linear_attn",
        form=MixerForm(projections="joined"),
    ),
    "lara_mini": MixerRow(
        kind="gated_delta_net",
        path="model.layers.{}.linear_attn",
        form=MixerForm(projections="joined"),
    ),
    "olmo_hybrid": MixerRow(
        kind="gated_delta_net",
        path="model.layers.{}.linear_attn",
        form=MixerForm(output="o_proj", norm="o_norm", negative_eigenvalues=True),
    ),
    "lfm2": MixerRow(kind="short_conv", path="model.layers.{}.conv"),
    "lfm3": MixerRow(kind="short_conv", path="model.layers.{}.conv"),
    "lfm2_moe": MixerRow(kind="short_conv", path="model.layers.{}.conv"),
    "kimi_linear": MixerRow(kind="kimi_delta", path="model.layers.{}.self_attn"),
    "recurrent_gemma": MixerRow(kind="rg_lru", path="model.layers.{}.temporal_block"),
    "samba": MixerRow(kind="mamba", path="backbone.layers.{}.mixer"),
    "hymba": MixerRow(kind="mamba", path="model.layers.{}.mamba"),
}
"""Families with recurrent layers, by `model_type`."""


def state_spec(config: PretrainedConfig, layer_idx: int, hybrid: bool, family: Family) -> StateSpec:
    """The state of one recurrent layer of a family; `hybrid` layers have attention beside it."""
    row = MIXERS[config.model_type]
    path = row.hybrid_path if hybrid and row.hybrid_path else row.path
    path = placed(path, family.text_model)
    sizes = SIZES[row.kind](config)
    return StateSpec(kind=row.kind, module_name=path.format(layer_idx), form=row.form, **sizes)
