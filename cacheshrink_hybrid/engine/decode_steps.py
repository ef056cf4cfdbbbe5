"""Decode steps that kernels take completely: padded batches of few sizes, and recorded graphs.

A step reads its tokens, positions and tables from tensors that stay where they are. On a CUDA
device it is recorded once per batch size, with nothing but padding in the batch, which writes
nothing, and replayed from then on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..latents.attention.kernel_view import kept_tensors
from ..latents.attention.module import LatentAttention
from ..model.adapters import adapted_modules
from .batch_cache import BatchCache
from .model_call import ModelCall
from .step_tables import batch_buckets

WARM_UP_STEPS = 2


class DecodeStep:
    """One new token of each of up to `batch_size` sequences.

    Args:
        call, cache: of the engine.
        max_tokens: most tokens that a sequence may have.

    Attributes:
        ids, positions: of the new tokens, (batch_size, 1).
        tables: where they go.
    """

    def __init__(
        self, call: ModelCall, cache: BatchCache, batch_size: int, max_tokens: int
    ) -> None:
        self.call, self.cache = call, cache
        self.ids = torch.zeros(batch_size, 1, dtype=torch.long, device=call.device)
        self.positions = torch.zeros_like(self.ids)
        self.tables = cache.tables(batch_size, 1, max_tokens)

    def fill(self, seq_ids: Sequence[Hashable], tokens: Sequence[int]) -> None:
        """Take in these sequences, whose frames have been reserved; the rest becomes padding."""
        count = len(seq_ids)
        self.tables.fill(self.cache.store, seq_ids)
        self.ids[:count, 0] = torch.tensor(tokens, dtype=torch.long)
        self.ids[count:] = 0
        self.positions[:, 0] = (self.tables.context_lens - 1).clamp_min(0)

    def __call__(self) -> Tensor:
        """Logits (batch_size, V); those of padding mean nothing."""
        self.cache.begin_step(self.tables)
        return self.call(self.ids, self.cache, self.positions, None)


class ModelPlaces:
    """Which modules a model is made of, and where its weights and buffers lie. Their values may
    change in place; a graph that was recorded follows that, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        self._entries: list[tuple[dict[str, Any], str, object]] = []
        self._tensors: list[Tensor] = []
        for module in model.modules():
            for entries in (module._parameters, module._buffers, module._modules):
                self._entries += [(entries, name, value) for name, value in entries.items()]
            held = (*module._parameters.values(), *module._buffers.values())
            self._tensors += [tensor for tensor in held if tensor is not None]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]

    def hold(self) -> bool:
        """Whether all of them are where they were."""
        return (
            all(entries.get(name) is value for entries, name, value in self._entries)
            and [tensor.data_ptr() for tensor in self._tensors] == self._addresses
        )


class RecordedStep:
    """A decode step as a CUDA graph.

    Args:
        step: filled with padding only.
        memory: of graphs that never run at the same time; None for the first one.
    """

    def __init__(self, step: DecodeStep, memory=None) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles kernels and fills caches
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=memory):
            self.logits = step()
        # The graph knows addresses only; what it reads has to stay alive.
        model = step.call.model
        modules = model.modules()
        self._kept = [kept_tensors(m.head) for m in modules if isinstance(m, LatentAttention)]
        self._places = ModelPlaces(model)

    @property
    def holds(self) -> bool:
        """Whether the model is still made of what was recorded."""
        return self._places.hold()

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.logits


class DecodeSteps:
    """Decode steps of all batch sizes, made when they are first needed.

    Args:
        call: of the model.
        cache: whose layers kernels take, all of them.
        max_batch: most sequences of a step.
        max_tokens: most tokens that a sequence may have.
    """

    def __init__(
        self, call: ModelCall, cache: BatchCache, *, max_batch: int, max_tokens: int
    ) -> None:
        self.call, self.cache, self.max_tokens = call, cache, max_tokens
        self.buckets = batch_buckets(max_batch)
        self._steps: dict[int, tuple[DecodeStep, Callable[[], Tensor]]] = {}
        self._records = False
        self._memory = None

    def record(self) -> None:
        """Record steps as graphs from now on, those of single sequences at once."""
        self._records = True
        self._steps.clear()
        self._step(self.buckets[0])

    def __call__(self, seq_ids: Sequence[Hashable], tokens: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token of each sequence."""
        count, largest = len(seq_ids), self.buckets[-1]
        if count > largest:
            parts = [slice(at, at + largest) for at in range(0, count, largest)]
            return torch.cat([self(seq_ids[part], tokens[part]) for part in parts])
        step, run = self._step(self.buckets[bisect_left(self.buckets, count)])
        step.fill(seq_ids, tokens)
        return run()[:count].clone()

    @torch.no_grad()
    def _step(self, size: int) -> tuple[DecodeStep, Callable[[], Tensor]]:
        recorded = self._steps[size][1] if size in self._steps else None
        if isinstance(recorded, RecordedStep) and not recorded.holds:
            self._steps.clear()  # weights were moved or exchanged, or adapters put in
            self._memory = None
        if size not in self._steps:
            step = DecodeStep(self.call, self.cache, size, self.max_tokens)
            run: Callable[[], Tensor] = step
            # Adapters are switched and scaled in Python, which a recorded graph does not run.
            if self._records and not adapted_modules(self.call.model):
                run = recorded = RecordedStep(step, self._memory)
                self._memory = recorded.graph.pool()
            self._steps[size] = (step, run)
        return self._steps[size]
