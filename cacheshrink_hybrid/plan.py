"""What each layer gets, and what it costs in bytes: the result of a conversion, as plain data.

A `CompressionPlan` holds everything that is needed to rebuild the latent modules around a source
config; the weights come from the checkpoint. It prints as a table and travels as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .codecs import RowCodec, RowFormat
from .codecs.state import StateCodec, StateSegment
from .errors import PlanError
from .spec import BYTES_16BIT, BYTES_32BIT, LayerSpec, ModelSpec

CROP_SLACK = 32
"""Tokens before an exact window that are kept exact as well, so that as many can be removed from
the end (rejected guesses of assisted decoding) without leaving the window short."""

READ_MODES = ("absorb", "reconstruct", "rotate")


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
        method: `joint`, `separate`, `xkv`, `per_head` or `rotate`.
        kv_lora_rank: stored channels per token, R.
        key_rank: channels that keys are rebuilt from, Rk.
        value_rank: channels that values are rebuilt from, Rv.
        read_mode: `absorb` (queries are projected into the latent, nothing is rebuilt),
            `reconstruct` (keys are rebuilt and rotated, values absorbed) or `rotate` (keys are
            stored rotated, and absorbed).
        runs: widths of the stored channels; their channels add up to R.
        row_format: how latents are written as rows of bytes; None where they are stored as they
            are, in the model's dtype.
        frequencies: for `rotate`, the rotary frequency of each pair of key channels, -1 for pairs
            that are not rotated.
        exact_sinks: first tokens of a sequence that are kept at 16 bits as well.
        exact_window: most recent tokens, the last one included, that are kept at 16 bits as well.
        basis_group: number of the group of modules that share one basis; None if not shared.
        predicted_loss: expected loss of what was cut off, in units of the metric, summed over the
            layers served (nats per token for `fisher`).
        expected_error: E|y - y^|^2 of y = [k; v], in activation units.
        error_bound: upper bound on `expected_error` that follows from the cut-off spectrum alone.
        relative_error: `expected_error` divided by the total variance of y.
        escaped_share: share of calibration tokens that needed a gain.
        saturated_share: share of calibration elements that are clipped whatever the gain.
        read_ns: modelled time that one decode step spends on one cached token.
    """

    layer_ids: tuple[int, ...]
    method: str
    kv_lora_rank: int
    key_rank: int
    value_rank: int
    read_mode: str
    runs: tuple[ChannelRun, ...]
    row_format: RowFormat | None = None
    frequencies: tuple[int, ...] | None = None
    exact_sinks: int = 0
    exact_window: int = 0
    basis_group: int | None = None
    predicted_loss: float = 0.0
    expected_error: float = 0.0
    error_bound: float = 0.0
    relative_error: float = 0.0
    escaped_share: float = 0.0
    saturated_share: float = 0.0
    read_ns: float = 0.0

    def __post_init__(self) -> None:
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
        if self.read_mode not in READ_MODES:
            raise PlanError(f"read_mode={self.read_mode!r} is unknown; one of {READ_MODES} is due")
        if (self.frequencies is not None) != (self.read_mode == "rotate") or (
            self.frequencies is not None and 2 * len(self.frequencies) != self.key_rank
        ):
            raise PlanError(
                f"layer {self.layer_ids[0]} with read_mode={self.read_mode!r} and "
                f"key_rank={self.key_rank} has frequencies={self.frequencies}; `rotate` needs one "
                "per pair of key channels, other modes none"
            )

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

    @property
    def keeps_exact(self) -> bool:
        """Whether some tokens are kept at 16 bits beside their rows."""
        return self.exact_sinks > 0 or self.exact_window > 0

    def exact_bytes(self, num_tokens: int) -> int:
        """Bytes of a sequence's exact copies in one layer, which do not grow beyond the window."""
        recent = min(num_tokens, self.exact_window + CROP_SLACK) if self.exact_window else 0
        return (self.exact_sinks + recent) * self.kv_lora_rank * BYTES_16BIT

    @property
    def widths(self) -> str:
        """Channels by width, such as `16x8 32x4`."""
        return " ".join(f"{run.channels}x{run.bits}" for run in self.runs)

    def key_shares(self, num_heads: int) -> tuple[int, ...]:
        """For `per_head`, the channels of one head in each run of the keys. A run holds the
        channels of head 0, then of head 1, and so on.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePlan:
    """What one recurrent layer stores per sequence.

    Attributes:
        layer_idx: cache layer.
        kind: of the mixer, as in `StateSpec`.
        method: `full` (all channels, in the source's basis), `oblique` or `orthonormal` (a basis
            of r directions), `select` (r channels, what reads them refitted), `prune` (r channels).
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
        exact = _exact_ring_bytes(self.kind, self.codec().num_heads)
        ring = (self.ring_bytes_per_token - exact) * wide + exact
        codes = self.recurrent_bytes if num_tokens >= self.replay_length else 0
        return codes + (self.replay_length - 1) * ring + self.conv_bytes * wide

    @property
    def codes(self) -> str:
        """Heads by code and rank, such as `4xint8:24 2xfloat16:24`."""
        return " ".join(f"{len(s.heads)}x{s.code}:{s.rank}" for s in self.segments)


def ring_bytes_per_token(kind: str, num_heads: int, head_dim: int, ranks: Sequence[int]) -> int:
    """Bytes of one token's inputs: values and keys (or B) at 16 bits, what the decay is computed
    from in float32, except Mamba-1's step sizes, of which there is one per channel."""
    values = num_heads * head_dim * (2 if kind == "mamba" else 1)
    return (values + sum(ranks)) * BYTES_16BIT + _exact_ring_bytes(kind, num_heads)


def _exact_ring_bytes(kind: str, num_heads: int) -> int:
    """What the decay is computed from: dt of Mamba-2; decay and beta of a delta net."""
    return {"mamba2": 1, "gated_delta_net": 2, "mamba": 0}[kind] * num_heads * BYTES_32BIT


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionPlan:
    """The plan of a whole model.

    Attributes:
        model_type: family of the source model.
        source_bytes_per_token: KV bytes per token before, at 16 bits per element.
        kept_bytes_per_token: part of them that attention layers left as they are still take.
        latents: one entry per converted attention module.
        metric: what `predicted_loss` is measured in.
        settings: the `CompressionConfig` that led here, as a dict.
        states: one entry per converted recurrent layer.
        source_state_bytes: bytes of all states of one sequence before: recurrent states in float32,
            as every model keeps them, and convolution columns at 16 bits.
        kept_state_bytes: part of them in recurrent layers left as they are.
    """

    model_type: str
    source_bytes_per_token: int
    kept_bytes_per_token: int
    latents: tuple[LatentPlan, ...]
    metric: str
    settings: dict[str, Any] = field(default_factory=dict)
    states: tuple[StatePlan, ...] = ()
    source_state_bytes: int = 0
    kept_state_bytes: int = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of all states of one sequence after conversion."""
        return self.kept_state_bytes + sum(state.bytes_per_sequence for state in self.states)

    @property
    def state_ratio(self) -> float:
        return self.source_state_bytes / self.state_bytes if self.state_bytes else 1.0

    @property
    def bytes_per_token(self) -> int:
        """KV bytes per token after conversion, over all layers."""
        stored = sum(latent.bytes_per_token * len(latent.layer_ids) for latent in self.latents)
        return self.kept_bytes_per_token + stored

    @property
    def compression_ratio(self) -> float:
        return self.source_bytes_per_token / self.bytes_per_token if self.bytes_per_token else 1.0

    def bytes_at(self, spec: ModelSpec, num_tokens: int) -> int:
        """Bytes of one sequence of `num_tokens`: rows of all tokens that are held, exact copies,
        and states.

        Args:
            spec: of the source model; says how far each layer's window reaches.
        """
        by_layer = {idx: latent for latent in self.latents for idx in latent.layer_ids}
        total = self.state_bytes
        for layer in spec.attention_layers:
            assert layer.attention is not None
            held = min(num_tokens, layer.attention.sliding_window or num_tokens)
            latent = by_layer.get(layer.layer_idx)
            if latent is None:
                total += held * layer.bytes_per_token
            else:
                total += held * latent.bytes_per_token + latent.exact_bytes(num_tokens)
        return total

    @property
    def predicted_loss(self) -> float:
        """Of keys and values, in units of the metric."""
        return sum(latent.predicted_loss for latent in self.latents)

    @property
    def state_loss(self) -> float:
        """Of recurrent states, cut and rounded, in units of the metric."""
        return sum(state.predicted_loss + state.rounding_loss for state in self.states)

    @property
    def total_loss(self) -> float:
        return self.predicted_loss + self.state_loss

    @property
    def error_bound(self) -> float:
        return sum(latent.error_bound for latent in self.latents)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompressionPlan:
        latents = tuple(
            LatentPlan(
                **{
                    **latent,
                    "layer_ids": tuple(latent["layer_ids"]),
                    "runs": tuple(ChannelRun(**run) for run in latent["runs"]),
                    "row_format": latent["row_format"] and RowFormat(**latent["row_format"]),
                    "frequencies": latent["frequencies"] and tuple(latent["frequencies"]),
                }
            )
            for latent in values["latents"]
        )
        states = tuple(
            StatePlan(
                **{
                    **state,
                    "segments": tuple(
                        StateSegment(**{**segment, "heads": tuple(segment["heads"])})
                        for segment in state["segments"]
                    ),
                    "ranks": tuple(state["ranks"]),
                    "channels": _nested_tuple(state["channels"]),
                }
            )
            for state in values.get("states", ())
        )
        return cls(**{**values, "latents": latents, "states": states})

    def rows(self, spec: ModelSpec) -> list[dict[str, Any]]:
        """One record per cache layer, in order: what it stores before and after."""
        by_layer = {idx: latent for latent in self.latents for idx in latent.layer_ids}
        records = []
        for layer in spec.layers:
            latent = by_layer.get(layer.layer_idx)
            record: dict[str, Any] = {"layer": layer.layer_idx, "mixer": layer.mixer or "-"}
            record |= self._state_record(layer)
            if layer.attention is None:
                record |= {"attention": "-"}
            else:
                window = layer.attention.sliding_window
                record |= {
                    "attention": "full" if window is None else f"window {window}",
                    "source B/token": layer.bytes_per_token,
                }
                if latent is None:
                    record |= {"stored B/token": layer.bytes_per_token, "method": "original"}
                else:
                    record |= {
                        "stored B/token": latent.bytes_per_token,
                        "method": latent.method,
                        "rank": latent.kv_lora_rank,
                        "bits": latent.widths,
                        "K/V rank": f"{latent.key_rank}/{latent.value_rank}",
                        "read": latent.read_mode,
                        "predicted loss": latent.predicted_loss / len(latent.layer_ids),
                        "relative error": latent.relative_error,
                        "read ns/token": latent.read_ns,
                    }
            records.append(record)
        return records

    def _state_record(self, layer: LayerSpec) -> dict[str, Any]:
        """The state columns of one layer."""
        if layer.state is None:
            return {}
        plan = next((state for state in self.states if state.layer_idx == layer.layer_idx), None)
        record: dict[str, Any] = {"source state B": layer.bytes_per_sequence}
        if plan is None:
            return record | {"stored state B": layer.bytes_per_sequence, "state": "original"}
        return record | {
            "stored state B": plan.bytes_per_sequence,
            "state": plan.method,
            "heads": plan.codes,
            "replay": plan.replay_length,
            "state loss": plan.predicted_loss + plan.rounding_loss,
            "state error": plan.relative_error,
        }

    def table(self, spec: ModelSpec) -> str:
        """The plan as an aligned text table with a line for each memory."""
        unit = "nats/token" if self.metric == "fisher" else f"{self.metric} units"
        lines = [format_table(self.rows(spec))]
        if self.source_bytes_per_token:
            lines.append(
                f"{self.source_bytes_per_token} -> {self.bytes_per_token} bytes per token "
                f"({self.compression_ratio:.2f}x at 16 bits), predicted loss "
                f"{self.predicted_loss:.4g} {unit}"
            )
        if self.source_state_bytes:
            lines.append(
                f"{self.source_state_bytes} -> {self.state_bytes} bytes of state per sequence "
                f"({self.state_ratio:.2f}x), predicted loss {self.state_loss:.4g} {unit}"
            )
        return "\n".join(lines)


def _nested_tuple(values: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    return None if values is None else tuple(tuple(group) for group in values)


def format_table(records: Sequence[dict[str, Any]]) -> str:
    """Align records (dicts with possibly different keys) as a Markdown table."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    cells = [columns] + [
        [_cell(record[column]) if column in record else "" for column in columns]
        for record in records
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
