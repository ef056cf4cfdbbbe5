"""Hooks on a source model's attention: its inputs, and the gradients that reach K and V."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ...linear_map import looking_on
from ..attention.parts import AttentionParts


@contextmanager
def observed_inputs(parts: AttentionParts, see: Callable[[Tensor, int], None]) -> Iterator[None]:
    """Call `see(x, layer_idx)` with every attention input x (B, T, E), after the layer's norm."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, *, layer_idx: int) -> None:
        see((args[0] if args else kwargs["hidden_states"]).detach(), layer_idx)

    handles = [
        source.register_forward_pre_hook(partial(hook, layer_idx=layer_idx), with_kwargs=True)
        for layer_idx, source in parts.sources.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def observed_gradients(parts: AttentionParts, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see(g)` with the gradients g (tokens, 2*J*D) of every pass over keys and values."""
    handles = []
    for source in parts.sources.values():
        halves: list[Tensor | None] = [None, None]

        def collect(gradient: Tensor, *, rows: Tensor | None, half: int, halves=halves) -> None:
            selected = gradient if rows is None else gradient[..., rows.to(gradient.device)]
            halves[half] = selected.reshape(-1, selected.shape[-1])
            if halves[0] is not None and halves[1] is not None:
                see(torch.cat([halves[0], halves[1]], dim=-1))
                halves[:] = [None, None]

        def hook(module, args, output, *, rows, half, collect=collect):
            if not output.requires_grad:
                output.requires_grad_(True)
            # Recomputed activations of a checkpoint get no gradient, so their hooks stay silent.
            output.register_hook(partial(collect, rows=rows, half=half))

        for half, projection in enumerate((parts.key, parts.value)):
            module = getattr(source, projection.name)
            watch = looking_on(partial(hook, rows=projection.rows, half=half))
            handles.append(module.register_forward_hook(watch))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
