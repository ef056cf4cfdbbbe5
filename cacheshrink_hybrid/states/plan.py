"""What one recurrent layer stores per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..codecs.state import StateCodec, StateSegment
from ..methods import STATE_METHODS, StateMethod
from ..spec import BYTES_16BIT, BYTES_32BIT
from .kinds import MIXER_KINDS, MixerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePlan:
    """What one recurrent layer stores per sequence.

    Attributes:
        layer_idx: cache layer.
        kind: of the mixer, a row of `MIXER_KINDS`.
        method: `full` (all channels, in the source's basis) or a row of `STATE_METHODS`.
        state_size: N, channels of the source's state.
        head_dim: P.
        segments: heads by rank and code; together they are all heads.
        ranks: kept channels by group, (G,).
        channels: which ones, by group, where channels are selected; None with a basis.
        replay_length: L, tokens between two rewritings of the state; 1 rewrites it every token.
        conv_channels, conv_kernel: of the convolution, without channels that are folded away; W - 1
            columns are stored, 16 bits each.
        ring_bytes_per_token: inputs of one token in the replay ring, which holds L - 1.
        predicted_loss: expected loss of what was cut off, in units of the metric.
        rounding_loss: expected loss of coding, in the same units.
        relative_error: E|dy|^2 / E|y|^2 of what the cut costs the mixer's output before its gate.
    """

    layer_idx: int
    kind: str
    method: str
    state_size: int
    head_dim: int
    segments: tuple[StateSegment, ...]
    ranks: tuple[int, ...]
    channels: tuple[tuple[int, ...], ...] | None = None
    replay_length: int = 1
    conv_channels: int = 0
    conv_kernel: int = 1
    ring_bytes_per_token: int = 0
    predicted_loss: float = 0.0
    rounding_loss: float = 0.0
    relative_error: float = 0.0

    @property
    def mixer(self) -> MixerKind:
        """What is known of mixers of this kind."""
        return MIXER_KINDS[self.kind]

    @property
    def narrowing(self) -> StateMethod | None:
        """How channels are left out; None where none is."""
        return STATE_METHODS.get(self.method)

    def codec(self) -> StateCodec:
        """The codec of this layer's states."""
        return StateCodec(self.head_dim, self.segments)

    @property
    def width(self) -> int:
        """r of the tensors: the largest rank."""
        return max(self.ranks)

    @property
    def recurrent_bytes(self) -> int:
        return self.codec().row_bytes

    @property
    def ring_inputs(self) -> tuple[tuple[int, bool], ...]:
        """(elements, kept in float32) of each input of one token, in the order of the ring."""
        return _ring_inputs(self.mixer, self.codec().num_heads, self.head_dim, self.ranks)

    @property
    def ring_bytes(self) -> int:
        return (self.replay_length - 1) * self.ring_bytes_per_token

    @property
    def conv_bytes(self) -> int:
        return self.conv_channels * (self.conv_kernel - 1) * BYTES_16BIT

    @property
    def bytes_per_sequence(self) -> int:
        """Everything that is stored for one sequence: codes, ring, convolution columns."""
        return self.recurrent_bytes + self.ring_bytes + self.conv_bytes

    def allocated_bytes(self, num_tokens: int, element_bytes: int) -> int:
        """Bytes that a live cache holds after `num_tokens` of one sequence.

        Args:
            element_bytes: of the model's dtype. Convolution columns and ring have 16 bits unless
                the model and its states are float32 throughout.
        """
        wide = element_bytes // BYTES_16BIT if self.codec().lossless else 1
        exact = sum(width * BYTES_32BIT for width, is_exact in self.ring_inputs if is_exact)
        ring = (self.ring_bytes_per_token - exact) * wide + exact
        codes = self.recurrent_bytes if num_tokens >= self.replay_length else 0
        return codes + (self.replay_length - 1) * ring + self.conv_bytes * wide

    @property
    def codes(self) -> str:
        """Heads by code and rank, such as `4xint8:24 2xfloat16:24`."""
        return " ".join(f"{len(s.heads)}x{s.code}:{s.rank}" for s in self.segments)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StatePlan:
        """The plan that `dataclasses.asdict` took apart, also by way of JSON."""
        segments = tuple(
            StateSegment(**{**segment, "heads": tuple(segment["heads"])})
            for segment in values["segments"]
        )
        channels = values["channels"]
        return cls(
            **{
                **values,
                "segments": segments,
                "ranks": tuple(values["ranks"]),
                "channels": None if channels is None else tuple(map(tuple, channels)),
            }
        )


def ring_bytes_per_token(
    mixer: MixerKind, num_heads: int, head_dim: int, ranks: Sequence[int]
) -> int:
    """Bytes of one token's inputs: values and keys (or B) at 16 bits, what the decay is computed
    from in float32, except Mamba-1's step sizes, of which there is one per channel."""
    inputs = _ring_inputs(mixer, num_heads, head_dim, ranks)
    return sum(width * (BYTES_32BIT if exact else BYTES_16BIT) for width, exact in inputs)


def _ring_inputs(
    mixer: MixerKind, num_heads: int, head_dim: int, ranks: Sequence[int]
) -> tuple[tuple[int, bool], ...]:
    """(elements, kept in float32) of one token's inputs to the recurrence, in their order."""
    widths = {"values": num_heads * head_dim, "writes": sum(ranks), "decays": num_heads}
    return tuple((widths[name], name == "decays") for name in mixer.inputs)
