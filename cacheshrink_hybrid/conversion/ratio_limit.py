"""How far a model can be compressed at all, told from its spec before any text is read."""

from __future__ import annotations

import math

from ..codecs.state import one_segment
from ..config import CompressionConfig
from ..errors import PlanError
from ..latents.fit.bits import row_alignment, run_channels
from ..methods import WIDTHS_OF
from ..spec import BYTES_16BIT, LayerSpec, ModelSpec
from ..states.fit.planner import RANKS
from ..states.kinds import MIXER_KINDS, compressible_layers


def check_reachable(spec: ModelSpec, config: CompressionConfig) -> None:
    """Raise `PlanError` for a ratio, budget or rank that no plan can have, whatever the text."""
    layers = compressed_layers(spec, config)
    if config.d_latent is not None:
        _check_rank(layers, config, config.d_latent)
    elif config.budget_bytes is not None:
        _check_budget(spec, layers, config, config.budget_bytes)
    elif layers:
        _check_ratio(spec, layers, config)
    if config.state_ratio > 1:
        _check_state_ratio(spec, config)


def compressed_layers(spec: ModelSpec, config: CompressionConfig) -> tuple[LayerSpec, ...]:
    """Attention layers that are not left as they are."""
    modules = list(spec.shared_modules().values())
    kept = config.xkv_skip_early_layers if config.keep_early_layers_original else 0
    return tuple(layer for module in modules[kept:] for layer in module)


def least_row_bytes(layer: LayerSpec, config: CompressionConfig) -> int:
    """The least that a token can take in a layer: of coded latents one run of the smallest width,
    of others one channel of 16 bits, and two where keys and values are apart."""
    assert layer.attention is not None
    width = layer.attention.cached_width
    if not config.coded:
        apart = config.latent_kind is not None and not config.latent_kind.joint
        return BYTES_16BIT * (2 if apart else 1)
    runs = [(run_channels(width), min(WIDTHS_OF[config.cache_bits]))]
    return config.row_format(row_alignment(width)).row_bytes(runs)


def _check_ratio(spec: ModelSpec, layers: tuple[LayerSpec, ...], config: CompressionConfig) -> None:
    kept = kept_bytes(spec, layers)
    least = kept + sum(least_row_bytes(layer, config) for layer in layers)
    allowed = spec.bytes_per_token / config.compression_ratio
    if allowed < least:
        raise PlanError(
            f"compression_ratio={config.compression_ratio:g} leaves {allowed:.1f} bytes per token, "
            f"and the least that can be stored with these settings is {least}; give a "
            f"compression_ratio of at most {_floor(spec.bytes_per_token / least)}"
            + (f", or keep fewer layers, which take {kept}" if kept else "")
        )


def _check_rank(layers: tuple[LayerSpec, ...], config: CompressionConfig, rank: int) -> None:
    assert config.latent_kind is not None
    widths = [
        (attention.key_width, attention.value_width)
        for attention in (layer.attention for layer in layers)
        if attention is not None
    ]
    whole = sum if config.latent_kind.joint else min
    full = min(map(whole, widths), default=rank)
    if rank > full:
        raise PlanError(
            f"d_latent={rank} exceeds the full rank {full} of this model's latents; give at most "
            f"{full}"
        )


def _check_budget(
    spec: ModelSpec, layers: tuple[LayerSpec, ...], config: CompressionConfig, budget: int
) -> None:
    length = config.context_length
    assert length is not None
    compressed = {layer.layer_idx for layer in layers}
    least = least_state_bytes(spec, config)
    for layer in spec.attention_layers:
        assert layer.attention is not None
        held = min(length, layer.attention.sliding_window or length)
        coded = layer.layer_idx in compressed
        least += held * (least_row_bytes(layer, config) if coded else layer.bytes_per_token)
    if budget < least:
        raise PlanError(
            f"budget_bytes={budget} is less than the least that {length} tokens of this model can "
            f"take with these settings, {least}; give a budget_bytes of at least that, or a "
            "shorter context_length"
        )


def _check_state_ratio(spec: ModelSpec, config: CompressionConfig) -> None:
    allowed = spec.bytes_per_sequence / config.state_ratio
    least = least_state_bytes(spec, config)
    if allowed < least:
        raise PlanError(
            f"state_ratio={config.state_ratio:g} leaves {allowed:.0f} bytes per sequence, and the "
            f"least that can be stored with these settings is {least}; give a state_ratio of less "
            f"than {_floor(spec.bytes_per_sequence / least)}"
        )


def least_state_bytes(spec: ModelSpec, config: CompressionConfig) -> int:
    """What the states of a sequence take at the least possible ranks, in the shortest code that is
    allowed, without a ring."""
    compressible = {layer.layer_idx for layer in compressible_layers(spec)}
    total = 0
    for layer in spec.state_layers:
        state = layer.state
        assert state is not None
        if layer.layer_idx not in compressible:
            total += layer.bytes_per_sequence
            continue
        code = "int8" if config.state_dtype == "auto" else config.state_dtype
        channels = max(1, state.state_size // RANKS)
        kind = MIXER_KINDS[state.kind]
        folded = kind.folded_columns.get(kind.method(config.state_method), 0) * state.num_groups
        columns = state.conv_channels - folded * (state.state_size - channels)
        codec = one_segment(state.num_heads, state.head_dim, channels, code)
        total += codec.sizes(codec.segments[0])[0]
        total += columns * (state.conv_kernel - 1) * BYTES_16BIT
    return total


def _floor(ratio: float) -> str:
    """A ratio in few digits, not rounded up."""
    return f"{math.floor(100 * ratio) / 100:g}"


def kept_bytes(spec: ModelSpec, layers: tuple[LayerSpec, ...]) -> int:
    """Bytes per token of attention layers that are left as they are."""
    return spec.bytes_per_token - sum(layer.bytes_per_token for layer in layers)
