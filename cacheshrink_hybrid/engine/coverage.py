"""Which layers of a model meet the pool by kernels, and why others do not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..errors import KernelUnavailableError
from ..kernels.backend import REFUSING, Backend, implementation_on
from ..latents.attention import kernel_view
from ..latents.attention.module import LatentAttention
from ..placement import input_device
from ..spec import ModelSpec
from ..states.mixers import pool_step
from ..states.mixers.mixer import RecurrentMixer


@dataclass(frozen=True, slots=True)
class KernelCoverage:
    """What kernels do in the engine's decode steps.

    Attributes:
        rows, states: cache layers whose rows are read, and whose states are stepped, by kernels.
        faults: per layer that torch computes though the model is converted there, why.
        complete: nothing that a step reads or writes in the pool is left to torch.
    """

    rows: frozenset[int]
    states: frozenset[int]
    faults: dict[int, str]
    complete: bool


def kernel_coverage(model: PreTrainedModel, spec: ModelSpec, backend: Backend) -> KernelCoverage:
    """What kernels take of `model`.

    Args:
        backend: who decodes, see `RowMemory`.

    Raises:
        KernelUnavailableError: `triton` or `cpu`, and kernels cannot take a converted layer, or
            nothing is converted. `cpu` leaves recurrent states to torch.
    """
    if backend == "torch":
        return KernelCoverage(frozenset(), frozenset(), {}, complete=False)
    rows: set[int] = set()
    states: set[int] = set()
    faults: dict[int, str] = {}
    reason: str | None
    layers: tuple[int, ...]
    device = input_device(model)
    on_cpu = implementation_on(backend, device) == "cpu"
    for module in model.modules():
        if isinstance(module, LatentAttention):
            like = torch.empty(0, dtype=model.dtype, device=device)
            reason = kernel_view.why_not(module.head, like)
            layers, found = module.plan.layer_ids, rows
        elif isinstance(module, RecurrentMixer) and on_cpu:
            continue
        elif isinstance(module, RecurrentMixer):
            reason, layers, found = pool_step.why_not(module), (module.layer_idx,), states
        else:
            continue
        if reason is None:
            found.update(layers)
        else:
            faults |= dict.fromkeys(layers, reason)
    if backend in REFUSING and (faults or not (rows or states)):
        told = "; ".join(f"layer {idx}: {reason}" for idx, reason in sorted(faults.items()))
        told = told or "nothing of it is converted"
        raise KernelUnavailableError(
            f"backend={backend!r} cannot decode this model: {told}; "
            "use backend='auto', which leaves such layers to torch"
        )
    recurrent = {layer.layer_idx for layer in spec.state_layers}
    if states and states != recurrent:
        # States of a sequence are moved together, so one that torch steps takes all along.
        if backend == "triton":
            raise KernelUnavailableError(
                f"backend='triton' cannot decode this model: layers {sorted(recurrent - states)} "
                "have recurrent states as in the source, which take all others to torch; use "
                "backend='auto'"
            )
        states = set()
    complete = rows == {layer.layer_idx for layer in spec.attention_layers} and states == recurrent
    return KernelCoverage(frozenset(rows), frozenset(states), faults, complete)
