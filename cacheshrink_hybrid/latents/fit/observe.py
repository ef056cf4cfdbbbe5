"""Hooks on a source model's attention: its inputs, and the gradients that reach K and V.

Keys may be split into what rotates and what does not, and what the latter costs is a gradient as
well: of keys u that add q . u to a score, with queries as they are before their rotation. The
source has none, so that u is zero, and only its gradient is of interest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ...linear_map import looking_on
from ..attention.argument_names import ENCODED_ARGUMENTS, name_among
from ..attention.parts import AttentionParts
from ..attention.split_heads import gated_heads, split_query


@contextmanager
def observed_inputs(parts: AttentionParts, see: Callable[[Tensor, int], None]) -> Iterator[None]:
    """Call `see(x, layer_idx)` with every x (B, T, E) that keys and values are made of: attention's
    input, after the layer's norm, or what an encoder puts out."""

    def seeing(layer_idx: int) -> Callable[[Tensor], None]:
        return lambda x: see(x, layer_idx)

    with ExitStack() as stack:
        for layer_idx, source in parts.sources.items():
            inputs = encoded_inputs_of if parts.crosses else inputs_of
            stack.enter_context(inputs(source, seeing(layer_idx)))
        yield


@contextmanager
def inputs_of(source: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see(x)` with every input x (B, T, E) of one attention module."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        see((args[0] if args else kwargs["hidden_states"]).detach())

    handle = source.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def encoded_inputs_of(source: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see(x)` with every output x (B, S, E) of an encoder that a cross-attention reads."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        name = name_among(ENCODED_ARGUMENTS, kwargs)
        assert name is not None, "cross-attention is given what an encoder puts out"
        see(kwargs[name].detach())

    handle = source.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def observed_gradients(
    parts: AttentionParts, see: Callable[[Tensor], None], *, split: bool = False
) -> Iterator[None]:
    """Call `see(g)` with the gradients g of every pass over [k; v], (tokens, 2*J*D).

    Args:
        split: over [k; v; u] instead, (tokens, 3*J*D).
    """
    handles = []
    for layer_idx, source in parts.sources.items():
        pieces: list[Tensor | None] = [None] * (3 if split else 2)

        def collect(gradient: Tensor, *, rows: Tensor | None, piece: int, pieces=pieces) -> None:
            gradient = gradient.flatten(2)  # of norms of single heads as well
            selected = gradient if rows is None else gradient[..., rows.to(gradient.device)]
            pieces[piece] = selected.reshape(-1, selected.shape[-1])
            found = [piece for piece in pieces if piece is not None]
            if len(found) == len(pieces):
                see(torch.cat(found, dim=-1))
                pieces[:] = [None] * len(pieces)

        def hook(module, args, output, *, rows, piece, collect=collect):
            if not output.requires_grad:
                output.requires_grad_(True)
            # Recomputed activations of a checkpoint get no gradient, so their hooks stay silent.
            output.register_hook(partial(collect, rows=rows, piece=piece))

        for piece, (name, rows) in enumerate(parts.observed):
            module = getattr(source, name)
            watch = looking_on(partial(hook, rows=rows, piece=piece))
            handles.append(module.register_forward_hook(watch))
        if split:
            of_unrotated = partial(collect, rows=None, piece=2)
            beside = partial(_with_unrotated, parts=parts, layer_idx=layer_idx, see=of_unrotated)
            handles.append(source.register_forward_hook(beside, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_unrotated(
    source: nn.Module,
    args: tuple,
    kwargs: dict,
    output: tuple,
    *,
    parts: AttentionParts,
    layer_idx: int,
    see: Callable[[Tensor], None],
) -> tuple:
    """A hook after attention: its output, through which unrotated keys of zero get a gradient."""
    x = (args[0] if args else kwargs["hidden_states"]).detach()
    unrotated = x.new_zeros(*x.shape[:2], parts.key_width, requires_grad=True)
    unrotated.register_hook(see)
    beside = attention_beside(parts, x, layer_idx, unrotated)
    return output[0] + (beside - beside.detach()), *output[1:]


def attention_beside(parts: AttentionParts, x: Tensor, layer_idx: int, unrotated: Tensor) -> Tensor:
    """The attention's output (1, T, E) for inputs x (1, T, E), with unrotated keys (1, T, J*D) that
    meet its queries beside its own."""
    assert parts.rotary is not None
    J, D, T = parts.num_key_value_heads, parts.head_dim, x.shape[1]
    q = parts.query.as_linear()(x)
    if parts.adapters:
        q = q + parts.adapters[layer_idx][0](x)
    query, gate = split_query(q, D, parts.q_norm, parts.norm_spans_heads, gated=parts.gated)
    if parts.query_scale is not None:
        query = query * parts.query_scale(torch.arange(T, device=x.device)[None]).to(query.dtype)
    if parts.gate is not None:
        gate = parts.gate(x)
    keys, values = (
        half.unflatten(-1, (J, D)).transpose(1, 2)
        for half in parts.key_value(x, layer_idx).chunk(2, dim=-1)
    )
    angles = parts.rotary.angles(T, query)
    turned = parts.rotary.rotate(keys * parts.key_multiplier, *angles)
    still = unrotated.unflatten(-1, (J, D)).transpose(1, 2) * parts.key_multiplier
    heads = nn.functional.scaled_dot_product_attention(
        torch.cat([parts.rotary.rotate(query, *angles), query], dim=-1),
        torch.cat([turned, still], dim=-1),
        values,
        attn_mask=_visible(T, parts.sliding_window, x.device),
        scale=parts.scaling,
        enable_gqa=True,
    )
    joined = heads.transpose(1, 2).flatten(2)
    joined = joined if gate is None else gated_heads(joined, gate)
    return parts.output(joined if parts.output_norm is None else parts.output_norm(joined))


def _visible(num_tokens: int, window: int | None, device: torch.device) -> Tensor:
    """Which tokens (T, T) each token sees."""
    seen = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


@contextmanager
def frozen_and_checkpointed(model: PreTrainedModel, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode without gradients for weights, and each decoder layer recomputed on the way
    back: memory grows with one layer's activations and one hidden state per layer."""
    training = [module for module in model.modules() if module.training]
    trainable = [p for p in model.parameters() if p.requires_grad]
    saved = [layer.__dict__.get("forward") for layer in layers]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, saved, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
