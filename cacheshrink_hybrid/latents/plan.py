"""What one attention module stores per token, and how it reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..codecs import RowCodec, RowFormat
from ..errors import PlanError
from ..methods import LATENT_KINDS, LatentKind

EXACT_BITS = 16
"""Width of the keys and values in exact rows."""

READ_MODES = ("absorb", "reconstruct", "rotate", "decoupled")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRun:
    """`channels` neighbouring latent channels stored with `bits` bits each."""

    channels: int
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPlan:
    """How one attention module stores and reads its latents.

    Keys are rebuilt from the channels `[0, key_rank)` of a token's latent, values from the last
    `value_rank` channels. In a joint latent the two ranges are the whole latent; apart, they are
    neighbours.

    Attributes:
        layer_ids: cache layers that the module serves; more than one for shared modules.
        method: a row of `LATENT_KINDS`.
        kv_lora_rank: stored channels per token, R.
        key_rank: channels that keys are rebuilt from, Rk.
        value_rank: channels that values are rebuilt from, Rv.
        read_mode: `absorb` (queries are projected into the latent, nothing is rebuilt),
            `reconstruct` (keys are rebuilt and rotated, values absorbed), `rotate` (keys are
            stored rotated within blocks of slots, and queries absorbed block by block) or
            `decoupled` (one rotary key for all heads is stored rotated by its slot, and queries are
            absorbed into both it and the rest).
        rotary_frequencies: for `decoupled`, the source's frequency of each pair of the rotary key,
            whose pairs are the first channels, real parts before imaginary ones.
        block_slots: for `rotate`, slots of a block, a power of two; 0 for other modes.
        runs: widths of the stored channels; their channels add up to R.
        row_format: how latents are written as rows of bytes; None where they are stored as they
            are, in the model's dtype.
        exact_sinks: first tokens of a sequence that have an exact row as well.
        exact_window: most recent tokens, the last one included, that have an exact row as well.
        exact_channels: of an exact row, 2 * J * D; 0 where no token has one.
        head_groups: groups of heads whose keys and values have channels of their own: a run holds
            equally many of the first group, then of the second, and so on. 1 where all heads share
            one latent.
        basis_group: number of the group of modules that share one basis; None if not shared.
        predicted_loss: expected loss of what was cut off, in units of the metric, summed over the
            layers served (nats per token for `fisher`), on the text that bases were fitted to.
        held_out_loss: the same on text that was kept from fitting; None where none was.
        expected_error: E|y - y^|^2 of y = [k; v], in activation units.
        error_bound: upper bound on `expected_error` that follows from the cut-off spectrum alone.
        relative_error: `expected_error` divided by the total variance of y.
        read_ns: modelled time that one decode step spends on one cached token, in all layers that
            read it.
        joint_loss: what a joint latent of as many bytes would lose, as `predicted_loss`, on
            held-out text where there is any; None where kinds were not weighed by their speed.
        joint_read_ns: modelled time of reading that.
    """

    layer_ids: tuple[int, ...]
    method: str
    kv_lora_rank: int
    key_rank: int
    value_rank: int
    read_mode: str
    runs: tuple[ChannelRun, ...]
    row_format: RowFormat | None = None
    block_slots: int = 0
    rotary_frequencies: tuple[int, ...] = ()
    exact_sinks: int = 0
    exact_window: int = 0
    exact_channels: int = 0
    head_groups: int = 1
    basis_group: int | None = None
    predicted_loss: float = 0.0
    held_out_loss: float | None = None
    expected_error: float = 0.0
    error_bound: float = 0.0
    relative_error: float = 0.0
    read_ns: float = 0.0
    joint_loss: float | None = None
    joint_read_ns: float | None = None

    def __post_init__(self) -> None:
        if self.method not in LATENT_KINDS:
            raise PlanError(
                f"method={self.method!r} of layer {self.layer_ids[0]} is unknown; one of "
                f"{', '.join(LATENT_KINDS)} is due, or the version that made this plan"
            )
        if sum(run.channels for run in self.runs) != self.kv_lora_rank:
            raise PlanError(
                f"runs {self.runs} of layer {self.layer_ids[0]} do not add up to "
                f"kv_lora_rank={self.kv_lora_rank}"
            )
        if max(self.key_rank, self.value_rank) > self.kv_lora_rank:
            raise PlanError(
                f"key_rank={self.key_rank} or value_rank={self.value_rank} of layer "
                f"{self.layer_ids[0]} exceeds kv_lora_rank={self.kv_lora_rank}"
            )
        sizes = (*(run.channels for run in self.runs), self.key_rank, self.value_rank)
        if any(size % self.head_groups for size in sizes):
            raise PlanError(
                f"runs {self.widths} of layer {self.layer_ids[0]}, with key_rank={self.key_rank} "
                f"and value_rank={self.value_rank}, do not hold equally many channels of "
                f"head_groups={self.head_groups} groups of heads; convert the model again"
            )
        if self.keeps_exact != (self.exact_channels > 0):
            raise PlanError(
                f"layer {self.layer_ids[0]} with exact_sinks={self.exact_sinks} and "
                f"exact_window={self.exact_window} has exact_channels={self.exact_channels}; keys "
                "and values of all heads are due where tokens stay exact, 0 elsewhere"
            )
        if self.read_mode not in READ_MODES:
            raise PlanError(f"read_mode={self.read_mode!r} is unknown; one of {READ_MODES} is due")
        rotates, block = self.read_mode == "rotate", self.block_slots
        if self.kind.stores_rotated != rotates or rotates != (block > 0) or block & (block - 1):
            raise PlanError(
                f"layer {self.layer_ids[0]} with method={self.method!r} has "
                f"read_mode={self.read_mode!r} and block_slots={block}; methods that store rotated "
                "keys have `rotate` and a power of two, others neither"
            )

        if self.kind.decouples != bool(self.rotary_frequencies) or (
            self.kind.decouples
            and not self.kv_lora_rank == self.key_rank == self.value_rank + self.qk_rope_head_dim
        ):
            raise PlanError(
                f"layer {self.layer_ids[0]} with method={self.method!r} has "
                f"rotary_frequencies={self.rotary_frequencies}, key_rank={self.key_rank} and "
                f"value_rank={self.value_rank}; a rotary key before the channels of values is due "
                "where keys are decoupled, and none elsewhere"
            )

    @property
    def qk_rope_head_dim(self) -> int:
        """Channels of the rotary key, 0 where there is none."""
        return 2 * len(self.rotary_frequencies)

    @property
    def kind(self) -> LatentKind:
        """What is known of latents of this method."""
        return LATENT_KINDS[self.method]

    @property
    def coded(self) -> bool:
        """Whether latents are stored as rows of bytes."""
        return self.row_format is not None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token in one layer, with everything that is stored for it."""
        if self.row_format is not None:
            return self.row_format.row_bytes([(run.channels, run.bits) for run in self.runs])
        return sum(run.channels * run.bits // 8 for run in self.runs)

    def splits_rows(self, parts: int) -> bool:
        """Whether so many equal parts of the heads have channels of their own."""
        return self.head_groups % parts == 0

    def part(self, parts: int) -> LatentPlan:
        """Of one of `parts` equal parts of the heads, which keeps its own channels of a row where
        that many divide `head_groups`, and whole rows elsewhere."""
        plan = replace(self, exact_channels=self.exact_channels // parts)
        if not self.splits_rows(parts):
            return plan
        return replace(
            plan,
            kv_lora_rank=self.kv_lora_rank // parts,
            key_rank=self.key_rank // parts,
            value_rank=self.value_rank // parts,
            runs=tuple(replace(run, channels=run.channels // parts) for run in self.runs),
            head_groups=self.head_groups // parts,
        )

    def part_channels(self, number: int, parts: int) -> list[int]:
        """Channels that part `number` of `parts` keeps, which divide `head_groups`."""
        found: list[int] = []
        first = 0
        for run in self.runs:
            share = run.channels // parts
            found += range(first + number * share, first + (number + 1) * share)
            first += run.channels
        return found

    @property
    def keeps_exact(self) -> bool:
        """Whether some tokens have an exact row beside their coded one."""
        return self.exact_sinks > 0 or self.exact_window > 0

    def exact_bytes(self, num_tokens: int) -> int:
        """Bytes of a sequence's exact rows in one layer, which do not grow beyond the window."""
        count = min(num_tokens, self.exact_sinks) + min(num_tokens, self.exact_window)
        return count * self.exact_row_bytes

    @property
    def exact_row_bytes(self) -> int:
        """Bytes of an exact row."""
        return RowFormat().row_bytes([(self.exact_channels, EXACT_BITS)])

    @property
    def widths(self) -> str:
        """Channels by width, such as `16x8 32x4`."""
        return " ".join(f"{run.channels}x{run.bits}" for run in self.runs)

    def key_shares(self, num_heads: int) -> tuple[int, ...]:
        """Where heads have channels of their own, those of one head in each run of the keys. A run
        holds the channels of head 0, then of head 1, and so on.

        Raises:
            PlanError: if runs do not hold equally many channels of every head, or run on into the
                values.
        """
        runs, channels = [], 0
        for run in self.runs:
            if channels < self.key_rank:
                runs.append(run.channels)
            channels += run.channels
        if sum(runs) != self.key_rank or any(run % num_heads for run in runs):
            raise PlanError(
                f"runs {self.widths} of layer {self.layer_ids[0]} do not share {self.key_rank} key "
                f"channels evenly among {num_heads} heads; convert the model again"
            )
        return tuple(run // num_heads for run in runs)

    def codec(self) -> RowCodec:
        """The codec of this layer's rows."""
        return RowCodec(tuple((run.channels, run.bits) for run in self.runs), self.row_format)

    def exact_codec(self) -> RowCodec:
        """The codec of exact rows: keys and values, at 16 bits."""
        return RowCodec(((self.exact_channels, EXACT_BITS),), RowFormat())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatentPlan:
        """The plan that `dataclasses.asdict` took apart, also by way of JSON."""
        return cls(
            **{
                **values,
                "layer_ids": tuple(values["layer_ids"]),
                "rotary_frequencies": tuple(values.get("rotary_frequencies", ())),
                "runs": tuple(ChannelRun(**run) for run in values["runs"]),
                "row_format": values["row_format"] and RowFormat(**values["row_format"]),
            }
        )
