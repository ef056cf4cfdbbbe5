"""Whether rewritten layers compute what their sources compute, found out before a conversion.

A row of `families/` that does not fit a model would convert it without a word into one that is
wrong. So the source runs over a few tokens, and every layer that is to be replaced is rebuilt at
full rank without coding and given what its source was given: in one pass, and piece by piece
through a cache. A second run lies at the end of the positions that the model knows, where scales
that depend on the position show. What differs by more than rounding is refused by its layer's name.
One layer is rebuilt at a time, so the check needs no memory to speak of, and the model is left as
it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutput

from ..cache_argument import CACHE_ARGUMENTS
from ..caches import LatentCache
from ..caches.encoder_decoder import dense_pair
from ..config import CompressionConfig
from ..errors import CacheShrinkError, SelfCheckError
from ..families import decoder_config, has_encoder
from ..latents.attention.argument_names import (
    BIAS_ARGUMENT,
    ENCODED_ARGUMENTS,
    MASK_ARGUMENTS,
    name_among,
)
from ..latents.attention.module import LatentAttention
from ..latents.attention.parts import AttentionParts
from ..latents.attention.replacement import latent_attention_class, reading_attention_class
from ..latents.fit.observe import frozen_and_checkpointed
from ..latents.plan import ChannelRun, LatentPlan
from ..model.folding import write_encoder
from ..placement import input_device
from ..spec import LayerSpec
from ..states.fit.planner import make_state_unit, plan_states
from ..states.mixers.installation import install_mixer, uninstall_mixer

NUM_TOKENS = 12
"""More than the few queries that are read directly (`MAX_DECODE_TOKENS`), so that both ways of
reading are met."""
NUM_ENCODED = 17
"""Vectors of an encoder's output, as many as no piece of the text has tokens."""
PIECES = (0, 7, 8, 9, 10, NUM_TOKENS)
"""Where the pieces begin that are fed through a cache, and where the last one ends."""
ALLOWED = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Differences that rounding explains, |found - due| over |due|, by the dtype of activations."""
REMEDY = (
    "The model does not compute what its family's row in cacheshrink_hybrid/families says, so "
    "that converting it would give wrong results; please report it with the model's config. "
    "self_check=False converts it all the same"
)
FOREIGN_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What code raises that was given something it was not written for."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a source's layer was given in one run, and its output (B, T, E)."""

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor

    def piece(self, begin: int, end: int, offset: int) -> tuple[tuple, dict[str, Any]]:
        """The arguments for tokens `begin` to `end` alone, on top of those before them.

        Args:
            offset: the first of the earlier tokens that the layer's cache still gives out.
        """
        tokens = slice(begin, end)
        args = tuple(x[:, tokens] if i == 0 else x for i, x in enumerate(self.args))
        kwargs = dict(self.kwargs)
        if "hidden_states" in kwargs:
            kwargs["hidden_states"] = kwargs["hidden_states"][:, tokens]
        angles = kwargs.get("position_embeddings")
        if angles is not None:
            one = isinstance(angles, Tensor)
            kwargs["position_embeddings"] = (
                angles[:, tokens] if one else tuple(angle[:, tokens] for angle in angles)
            )
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"][..., tokens]
        crosses = name_among(ENCODED_ARGUMENTS, kwargs) is not None
        for name in (*MASK_ARGUMENTS, BIAS_ARGUMENT):
            mask = kwargs.get(name)
            if not isinstance(mask, Tensor):
                continue
            if crosses:  # all of which every token sees
                kwargs[name] = mask[..., tokens, :] if mask.shape[-2] > 1 else mask
            else:
                seen = mask[:, :end] if mask.ndim == 2 else mask[..., tokens, offset:end]
                kwargs[name] = seen
        return args, kwargs


@dataclass(frozen=True, slots=True)
class WatchedLayer:
    """A layer of the source, and its calls in the order of the runs."""

    name: str
    module: nn.Module
    layer_idx: int
    calls: list[Call] = field(default_factory=list)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within this context its calls are kept."""

        def see(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            if kwargs.get("layer_idx", self.layer_idx) != self.layer_idx:
                return  # another layer's turn with a module that layers share
            given = {name: x for name, x in kwargs.items() if name not in CACHE_ARGUMENTS}
            self.calls.append(Call(args, given, _first(output)))

        handle = self.module.register_forward_hook(see, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def check_layers(
    model: PreTrainedModel,
    parts: Sequence[AttentionParts],
    mixers: Sequence[LayerSpec],
    *,
    seed: int = 0,
) -> float:
    """Compare every layer that a conversion is to replace with its source.

    Args:
        model: the source model, unchanged afterwards.
        parts: its attention modules, taken apart.
        mixers: the layers whose recurrent states are to be compressed.
        seed: of the tokens.

    Returns:
        The largest difference, |found - due| over |due| of a layer's output.

    Raises:
        SelfCheckError: a layer differs by more than rounding, or cannot run at all.
    """
    paths = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
    attention = {
        (part.crosses, layer_idx): WatchedLayer(paths[id(source)], source, layer_idx)
        for part in parts
        for layer_idx, source in (
            *part.sources.items(),
            *((idx, reader.source) for idx, reader in part.readers.items()),
        )
    }
    recurrent = []
    for spec in mixers:
        assert spec.state is not None
        path = spec.state.module_name
        recurrent.append(WatchedLayer(path, model.get_submodule(path), spec.layer_idx))
    config = decoder_config(model.config)
    differences = [0.0]
    with frozen_and_checkpointed(model, ()), torch.no_grad():
        _run(model, [*attention.values(), *recurrent], seed)
        for part in parts:
            for layer_idx in part.layer_ids:
                layer = attention[part.crosses, layer_idx]
                if part.rotary is not None:
                    _check_angles(layer)
                with _faults_named(layer):
                    rebuilt = [(layer, full_rank_attention(part))]
                for idx, reader in part.readers.items():
                    reading = attention[part.crosses, idx]
                    with _faults_named(reading):
                        cls = reading_attention_class(reader.source)
                        rebuilt.append((reading, cls(part, idx)))
                cache = dense_pair(config) if part.crosses else LatentCache(config=config)
                differences += _compare(rebuilt, cache)
        for layer, spec in zip(recurrent, mixers, strict=True):
            with _full_width(layer.module, spec):
                differences += _compare([(layer, layer.module)], LatentCache(config=config))
    return max(differences)


def _run(model: PreTrainedModel, layers: Sequence[WatchedLayer], seed: int) -> None:
    """Let the source read some tokens, at its first positions and at its last ones."""
    generator = torch.Generator().manual_seed(seed)
    embeddings: Any = model.get_input_embeddings()
    if has_encoder(model.config):  # whose words may be others than the decoder's
        embeddings = model.get_output_embeddings()
    vocabulary, device = len(embeddings.weight), input_device(model)
    ids = torch.randint(vocabulary, (1, NUM_TOKENS), generator=generator).to(device)
    known = getattr(decoder_config(model.config), "max_position_embeddings", None)
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.recording())
        if has_encoder(model.config):  # of which nothing is replaced
            width = model.config.hidden_size
            encoded = torch.randn(1, NUM_ENCODED, width, generator=generator).to(
                device, model.dtype
            )
            given = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded)}
            model(decoder_input_ids=ids, use_cache=False, **given)
            return
        for start in sorted({0, max(0, (known or 0) - NUM_TOKENS)}):
            positions = torch.arange(start, start + NUM_TOKENS, device=device)[None]
            model(input_ids=ids, position_ids=positions, use_cache=False)


def _check_angles(layer: WatchedLayer) -> None:
    """Without angles nothing is rotated in this run, and what is read from a pool would be."""
    if any(
        "position_embeddings" in c.kwargs and c.kwargs["position_embeddings"] is None
        for c in layer.calls
    ):
        raise SelfCheckError(
            f"layer {layer.layer_idx} ({layer.name}) of the source is given no angles, and its "
            f"family's row says that it rotates keys. {REMEDY}"
        )


def _compare(rebuilt: Sequence[tuple[WatchedLayer, nn.Module]], cache: Cache) -> list[float]:
    """Give rebuilt layers what the source's were given, whole and, in the first run, in pieces;
    returns how much their outputs differ.

    Args:
        rebuilt: a layer, and those that read what it stores.
        cache: of the pieces.
    """
    differences = []
    for run in range(len(rebuilt[0][0].calls)):
        for layer, module in rebuilt:
            call = layer.calls[run]
            with _faults_named(layer):
                found = _first(module(*call.args, **call.kwargs))
            differences.append(_difference(layer, "in one pass", call.output, found))
    first = rebuilt[0][0]
    pieces: list[list[Tensor]] = [[] for _ in rebuilt]
    for begin, end in pairwise(PIECES):
        offset = 0
        if isinstance(cache, DynamicCache) and isinstance(
            cache.layers[first.layer_idx], CacheLayerMixin
        ):
            offset = cache.get_mask_sizes(end - begin, first.layer_idx)[1]
        for (layer, module), outputs in zip(rebuilt, pieces, strict=True):
            args, kwargs = layer.calls[0].piece(begin, end, offset)
            with _faults_named(layer):
                outputs.append(_first(module(*args, cache=cache, **kwargs)))
    for (layer, _), outputs in zip(rebuilt, pieces, strict=True):
        found = torch.cat(outputs, dim=1)
        differences.append(_difference(layer, "through a cache", layer.calls[0].output, found))
    return differences


def _difference(layer: WatchedLayer, how: str, due: Tensor, found: Tensor) -> float:
    """|found - due| over |due|, which rounding explains."""
    size = due.double().norm()
    difference = float((found.double() - due.double()).norm() / size)
    if not math.isfinite(float(size)):
        raise SelfCheckError(
            f"layer {layer.layer_idx} ({layer.name}) of the source gives numbers that are not "
            "finite; convert it in a dtype that holds them, such as bfloat16 or float32"
        )
    allowed = ALLOWED.get(due.dtype, max(ALLOWED.values()))
    if not difference <= allowed:
        raise SelfCheckError(
            f"layer {layer.layer_idx} ({layer.name}), rebuilt at full rank and without coding, "
            f"differs from its source by {difference:.2g} of its output {how}; rounding in "
            f"{due.dtype} explains {allowed:g}. {REMEDY}",
            difference,
        )
    return difference


@contextmanager
def _faults_named(layer: WatchedLayer) -> Iterator[None]:
    try:
        yield
    except CacheShrinkError:
        raise
    except FOREIGN_FAULTS as error:
        raise SelfCheckError(
            f"layer {layer.layer_idx} ({layer.name}) cannot be rebuilt: {type(error).__name__}: "
            f"{error}. {REMEDY}"
        ) from error


@torch.no_grad()
def full_rank_attention(parts: AttentionParts) -> LatentAttention:
    """Latent attention whose latent is [k; v] itself."""
    plan = LatentPlan(
        layer_ids=parts.layer_ids,
        method="separate",
        kv_lora_rank=parts.width,
        key_rank=parts.key_width,
        value_rank=parts.value_width,
        read_mode=parts.read_mode,
        runs=(ChannelRun(channels=parts.width, bits=16),),
    )
    module = latent_attention_class(parts)(parts, plan)
    write_encoder(module, parts)
    for projection, factor in ((module.k_b_proj, parts.key_multiplier), (module.v_b_proj, 1.0)):
        projection.weight.zero_().fill_diagonal_(factor)
        projection.bias.zero_()
    for layer_idx, (_, key, value) in parts.adapters.items():
        down, up = module.kv_a_adapters[str(layer_idx)]
        down.weight.copy_(torch.cat([key[0].weight, value[0].weight]))
        up.weight.copy_(torch.block_diag(key[1].weight, value[1].weight))
    return module


@contextmanager
def _full_width(module: nn.Module, layer: LayerSpec) -> Iterator[None]:
    """Within this context a source's mixer is a compressed one that keeps everything."""
    config = CompressionConfig(metric="none", state_dtype="float32", replay_length=1)
    (plan,), _ = plan_states([make_state_unit(layer, None, config)], config, math.inf)
    assert layer.state is not None
    mixer = install_mixer(module, layer.state, plan)
    try:
        yield
    finally:
        uninstall_mixer(mixer)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
