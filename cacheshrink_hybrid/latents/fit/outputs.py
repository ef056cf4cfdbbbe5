"""Output projections fitted again, to what compressed attention hands them.

Where the heads of a source give h for a token, those that read latents give h'. The layer owes its
model W h, and least squares over the tokens of a text make the most of h':

    W' = argmin sum |W' h' - W h|^2 + e |W' - W|^2

with e as if, beside N tokens, as many more had been read as h has channels, white ones that lose
nothing. Each layer is fitted to the inputs that the source gives it, all of them in one pass. Of
rotary keys apart this mends a quarter to a half of what is lost, and next to nothing of few-bit
rows, whose errors h' tells nothing about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ...linear_map import weight_and_bias
from ..attention.module import LatentAttention
from ..attention.parts import AttentionParts
from .observe import frozen_and_checkpointed

MOMENT_BYTES = 2 * 2**30
"""Of the moments that are summed in one pass over the text; of wider models it takes several."""


class OutputMoments:
    """Sums over tokens of h' h'^T, (n, n), and h' (W h)^T, (n, E), in float64 on the CPU.

    Args:
        weight: W, (E, n).
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach().to("cpu", torch.float64)
        outputs, width = self.weight.shape
        self.count = 0
        self.inner = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width, outputs, dtype=torch.float64)

    @staticmethod
    def num_bytes(weight: Tensor) -> int:
        outputs, width = weight.shape
        return 8 * width * (width + 2 * outputs)

    def add(self, given: Tensor, due: Tensor) -> None:
        """Count tokens with h' (..., n), of which W h (..., E) is due."""
        given, due = (x.detach().flatten(0, -2).to("cpu", torch.float64) for x in (given, due))
        self.count += len(given)
        self.inner.addmm_(given.T, given)
        self.cross.addmm_(given.T, due)

    def fitted(self) -> Tensor:
        """W', (E, n)."""
        width = len(self.inner)
        held = self.inner.diagonal().sum() / max(1, self.count)
        inner = self.inner + held * torch.eye(width, dtype=torch.float64)
        return torch.linalg.solve(inner, self.cross + held * self.weight.T).T


@torch.no_grad()
def fitted_outputs(
    model: PreTrainedModel,
    parts: Sequence[AttentionParts],
    modules: Sequence[LatentAttention],
    sequences: Sequence[Tensor],
    *,
    progress: bool = False,
) -> list[Tensor]:
    """Weights (E, H*D) of the output projections of compressed modules, float64.

    Args:
        model: the source model, unconverted. It is left as it was.
        parts: its attention modules.
        modules: those that are to take their places, in the same order, with the source's output
            projections.
        sequences: token ids, (1, T) each, without padding.
        progress: show a progress bar.
    """
    weights = [weight_and_bias(module.o_proj)[0] for module in modules]
    found: list[Tensor] = []
    while len(found) < len(modules):
        first, size = len(found), 0
        moments: list[OutputMoments] = []
        for weight in weights[first:]:
            size += OutputMoments.num_bytes(weight)
            if moments and size > MOMENT_BYTES:
                break
            moments.append(OutputMoments(weight))
        with ExitStack() as stack:
            stack.enter_context(frozen_and_checkpointed(model, ()))
            for part, module, sums in zip(parts[first:], modules[first:], moments, strict=False):
                stack.enter_context(_observed_outputs(part, module, sums))
            for ids in tqdm(sequences, desc="fit outputs", unit="seq", disable=not progress):
                model(input_ids=ids.to(model.device), use_cache=False)
        found += [sums.fitted() for sums in moments]
    return found


@contextmanager
def _observed_outputs(
    part: AttentionParts, module: LatentAttention, moments: OutputMoments
) -> Iterator[None]:
    """Call `module` beside the source's with every input of it, and count both."""
    bias = weight_and_bias(module.o_proj)[1]
    given: list[Tensor] = []

    def take(projection: nn.Module, args: tuple) -> None:
        given.append(args[0])

    def beside(layer_idx: int) -> Any:
        def hook(source: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            with module.o_proj.register_forward_pre_hook(take):
                module(*args, **kwargs | {"layer_idx": layer_idx})
            due = output[0] if isinstance(output, tuple) else output
            moments.add(given.pop(), due if bias is None else due - bias)

        return hook

    with ExitStack() as stack:
        for layer_idx, source in part.sources.items():
            hook = source.register_forward_hook(beside(layer_idx), with_kwargs=True)
            stack.enter_context(hook)
        yield
