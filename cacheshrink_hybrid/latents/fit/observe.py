"""Hooks on a source model's attention: its inputs, and the gradients that reach K and V."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedModel

from ...linear_map import looking_on
from ..attention.parts import AttentionParts

ATEN = torch.ops.aten
KEPT_RESULTS = {
    ATEN.mm.default,
    ATEN.addmm.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    ATEN._scaled_dot_product_flash_attention.default,
    ATEN._scaled_dot_product_efficient_attention.default,
}
"""What takes the time of a layer: computed from 16 bits, it is not computed a second time."""


@contextmanager
def observed_inputs(parts: AttentionParts, see: Callable[[Tensor, int], None]) -> Iterator[None]:
    """Call `see(x, layer_idx)` with every attention input x (B, T, E), after the layer's norm."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, *, layer_idx: int) -> None:
        # A layer is recomputed by the order of its operations; those of an observer do not count.
        with _disable_current_modes():
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
def frozen_and_checkpointed(
    model: PreTrainedModel, layers: Sequence[nn.Module], *, keep_products: bool = True
) -> Iterator[None]:
    """Evaluation mode without gradients for weights, and each decoder layer recomputed on the way
    back: memory grows with one layer's activations, one hidden state per layer, and what is kept.

    Args:
        keep_products: keep `KEPT_RESULTS` that are computed from 16 bits, so that little is left to
            be recomputed. Not where observers compute within a layer other than in
            `observed_inputs`.
    """
    training = [module for module in model.modules() if module.training]
    trainable = [p for p in model.parameters() if p.requires_grad]
    saved = [layer.__dict__.get("forward") for layer in layers]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    kept = {"context_fn": partial(create_selective_checkpoint_contexts, _kept)}
    for layer in layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, **(kept if keep_products else {})
        )
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


def _kept(_context: object, operation: object, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    if operation in KEPT_RESULTS and args[0].element_size() == 2:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
