"""What an error in rebuilt keys and values costs a converted model: the metric to train bases in.

M = E[g g^T] / 2 with g the gradient, per token, of the loss on labels sampled from the model, with
respect to the outputs [k; v] of `k_b_proj` and `v_b_proj`. It is measured on the compressed model
itself, so a loaded checkpoint needs neither its source nor stored statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import CalibrationError
from ..latents.attention.kept_source import KeepsSource
from ..latents.attention.module import LatentAttention
from ..latents.fit.metrics import Labels
from ..latents.fit.statistics import Moments
from ..linear_map import looking_on
from ..placement import input_device


def output_metrics(
    model: PreTrainedModel,
    modules: dict[str, LatentAttention],
    sequences: Iterable[Tensor],
    *,
    metric: str = "fisher",
    seed: int = 0,
) -> dict[str, Tensor]:
    """M of each module, (2*J*D, 2*J*D), float64; the identity for `activation`.

    Args:
        sequences: token ids, (1, T) each. Not used by `activation`.

    Raises:
        CalibrationError: no tokens, or gradients that are not finite.
    """
    widths = {name: module.head.width for name, module in modules.items()}
    if metric == "activation" or not modules:
        return {name: torch.eye(width, dtype=torch.float64) for name, width in widths.items()}
    moments = {name: Moments(width) for name, width in widths.items()}
    labels = Labels("model", seed)
    with ExitStack() as stack:
        stack.enter_context(_expanding(model))
        for name, module in modules.items():
            stack.enter_context(_observed(module, moments[name]))
        for ids in sequences:
            with torch.enable_grad():
                logits = model(input_ids=ids.to(input_device(model)), use_cache=False).logits
            labels.backward(logits, ids)
    for name, moment in moments.items():
        if moment.count == 0:
            raise CalibrationError("no tokens to measure the metric on; give training texts")
        if not torch.isfinite(moment.second_moment).all():
            raise CalibrationError(
                f"gradients at {name} are not finite; check the weights, and train in bfloat16 "
                "or float32"
            )
    return {name: 0.5 * moment.second_moment for name, moment in moments.items()}


@contextmanager
def _expanding(model: nn.Module):
    """Frozen weights, and training mode of attention over latents alone: it then expands keys and
    values through its projections whatever the length, and nothing is dropped out."""
    training = {module: module.training for module in model.modules()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    dropouts: dict[KeepsSource, float] = {}
    model.eval()
    for module in training:
        if isinstance(module, KeepsSource):
            module.training = True
            dropouts[module] = module.dropout
            module.dropout = 0.0
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for latent, dropout in dropouts.items():
            latent.dropout = dropout
        for module, was_training in training.items():
            module.training = was_training


@contextmanager
def _observed(module: LatentAttention, moments: Moments):
    halves: dict[str, Tensor] = {}

    def collect(gradient: Tensor, name: str) -> None:
        halves[name] = gradient.detach().reshape(-1, gradient.shape[-1])
        if len(halves) == 2:
            moments.add(torch.cat([halves["k_b_proj"], halves["v_b_proj"]], dim=-1))
            halves.clear()

    def hook(name: str):
        def see(_module, _args, output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_(True)
            output.register_hook(lambda gradient: collect(gradient, name))

        return see

    handles = [
        getattr(module, name).register_forward_hook(looking_on(hook(name)))
        for name in ("k_b_proj", "v_b_proj")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
