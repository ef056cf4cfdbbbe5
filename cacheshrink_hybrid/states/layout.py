"""What one layer stores of a state between two tokens, and in which precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..codecs.state import StateCodec
from ..codecs.straight_through import straight_through


@dataclass(frozen=True, slots=True)
class StateLayout:
    """What one layer stores per sequence.

    Attributes:
        codec: of the recurrent state.
        replay_length: L, tokens from one rewriting of the state to the next.
        conv_columns: W - 1.
        dtype: of convolution columns and of the inputs in the ring.
        exact_inputs: positions among the inputs that the ring keeps in float32 (step sizes, gates).
    """

    codec: StateCodec
    replay_length: int
    conv_columns: int
    dtype: torch.dtype
    exact_inputs: tuple[int, ...]

    def input_dtype(self, position: int) -> torch.dtype:
        return torch.float32 if position in self.exact_inputs else self.dtype

    @property
    def lossless(self) -> bool:
        return self.codec.lossless and self.dtype == torch.float32


class Recurrence(Protocol):
    """What a state asks of the mixer that it belongs to."""

    def scan(
        self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(y of the last n tokens, new state) of T inputs (B, T, ...) and n reads (B, n, ...)."""
        ...

    def read(self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor) -> Tensor:
        """y alone."""
        ...


def stored_dtype(dtype: torch.dtype, codec: StateCodec) -> torch.dtype:
    """Type of convolution columns and of the inputs in the ring of a model with such weights: 16
    bits, unless the state and the model are exact throughout."""
    if dtype in (torch.float16, torch.bfloat16):
        return dtype
    return torch.float32 if codec.lossless else torch.float16


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as it is stored in `dtype`, at most as large as that holds."""
    if dtype not in (x.dtype, torch.float32):
        limit = torch.finfo(dtype).max
        x = x.clamp(-limit, limit)
    return x.to(dtype)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` with what storing it in `dtype` leaves of it, in its own dtype; the gradient is that of
    `x`."""
    return straight_through(x, saturated(x.detach(), dtype).to(x.dtype))
