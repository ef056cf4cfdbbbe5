"""What the user asked for: one frozen record behind the parameters of `convert_to_mla`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .codecs.row_format import RowFormat
from .config_faults import setting_faults
from .errors import ConfigError, misplaced_settings
from .methods import AUTO, LATENT_KINDS, METRICS, LatentKind

DEFAULT_RATIO = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionConfig:
    """How far, and by which method, the attention cache is compressed.

    Settings that are the name of a row of `methods.TABLES` are described there, row by row.

    Attributes:
        compression_ratio: original cache bytes per token at 16 bits per element, divided by the
            bytes per token stored. 1.0 keeps every rank (an exact rewrite).
        compression_method: how keys and values are stored; `auto` chooses by layer, as `objective`
            says.
        objective: what `auto` goes by: `memory` (joint; with 16 bits separate where that loses
            nothing, because it is cheaper to read), `speed` (the kind that a decode step reads
            fastest by a model of the device), `auto` (few-bit rows as speed, where that costs
            little, else as memory; latents of 16 bits as memory).
        device_profile: the device of that model: a name of `device_profile.DEVICE_PROFILES`,
            or `BYTES_PER_SECOND:OPERATIONS_PER_SECOND`; `auto` is the one that the model is on.
        d_latent: explicit number of latent channels instead of a ratio: per layer for `joint`,
            for K and for V each with `separate` and `xkv`.
        cache_bits: bits per stored latent element. `auto` chooses 16, 8, 6 to 1 or 0 for every run
            of channels by what it is worth, and 16 throughout where ranks are fixed (`d_latent`,
            `uniform`, `xkv`) or nothing is to be saved (ratio 1); 8 and 4 choose between that
            width and 0; 16 stores latents as they are, in the model's dtype. `fp8` (e4m3),
            `fp8_e5m2`, `fp16` and `bf16` store all kept channels in that number format.
        hadamard: mix the channels of each run by a Hadamard matrix before they are coded.
        head_groups: groups of key heads, of equal size and side by side, whose keys and values have
            latents of their own, so that as many devices can hold a part of each row (vLLM's
            `tensor_parallel_size`). 1: heads share what they have in common, which loses least.
        exact_sinks: first tokens of a sequence that stay at 16 bits, beside few-bit rows, in layers
            without a sliding window. None: 4 where rows have few bits, else 0.
        exact_window: most recent tokens that stay at 16 bits. None: 32 where rows have few bits,
            else 0. By default at most an eighth of the tokens that a layer can read, or that
            calibration reads at once, stay exact.
        metric: what counts as loss.
        fisher_labels: whose next tokens the loss of `fisher` is of: those of the `text`, or drawn
            from the `model`.
        qk_rope_head_dim: width of the rotary key, with which the bytes of a latent begin;
            `decoupled_rope` only. None chooses the one that loses least.
        rank_allocation: `global` (one budget over all layers, ranks where the loss is) or
            `uniform`.
        metric_damping: share of its largest eigenvalue added to the diagonal of the metric
            (`fisher` and `score`).
        cross_layer_group_size: layers that share a basis; `xkv` only.
        xkv_skip_early_layers: first attention layers that do not share a basis; `xkv` only.
        keep_early_layers_original: leave those skipped layers uncompressed; `xkv` only.
        store_original_weights: keep the source's attention beside the latent one, so that
            `compression_disabled(model)` can switch back to it.
        state_ratio: bytes of recurrent and convolution states of one sequence before (recurrent
            states in float32, as models keep them), divided by bytes after. 1.0, the default,
            leaves recurrent layers as they are, unless `state_dtype` asks for a code.
        state_dtype: how recurrent states are stored: `auto` (float16, or int8 for heads that forget
            soon enough, by predicted loss), or one of `float32`, `float16`, `bfloat16`, `int8`,
            `float8` for all.
        state_method: how recurrent states are narrowed; `auto` chooses by kind of mixer.
        replay_length: tokens between two rewritings of a state; the inputs since then are kept in a
            ring. None chooses by predicted loss, the ring's bytes included; 1 has no ring.
        budget_bytes: bytes that one sequence of `context_length` tokens may take, KV and states
            together, instead of the two ratios; they are divided where the loss is least.
        context_length: tokens that `budget_bytes` is meant for.
        num_calibration_samples: sequences of calibration text.
        max_calibration_length: tokens per calibration sequence.
        num_recall_samples: short exercises in remembering (`key: value` lists and random letters
            that return) beside the calibration text, which seldom asks for what was read long
            ago. None: a quarter of `num_calibration_samples`, at least 8, less those that the
            source itself cannot do; none with a metric that reads no text.
        seed: seeds the labels that the `fisher` metric draws from the model.
    """

    compression_ratio: float = DEFAULT_RATIO
    compression_method: str = "auto"
    d_latent: int | None = None
    objective: str = AUTO
    device_profile: str = AUTO
    cache_bits: int | str = "auto"
    hadamard: bool = False
    head_groups: int = 1
    exact_sinks: int | None = None
    exact_window: int | None = None
    metric: str = "fisher"
    fisher_labels: str = "text"
    qk_rope_head_dim: int | None = None
    rank_allocation: str = "global"
    metric_damping: float = 1e-4
    cross_layer_group_size: int = 4
    xkv_skip_early_layers: int = 0
    keep_early_layers_original: bool = False
    store_original_weights: bool = False
    state_ratio: float = 1.0
    state_dtype: str = "auto"
    state_method: str = "auto"
    replay_length: int | None = None
    budget_bytes: int | None = None
    context_length: int | None = None
    num_calibration_samples: int = 128
    max_calibration_length: int = 512
    num_recall_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        faults = list(misplaced_settings(self)) or list(setting_faults(self))
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def changes_states(self) -> bool:
        """Whether recurrent layers are converted at all."""
        return self.state_ratio != 1 or self.state_dtype != "auto" or self.budget_bytes is not None

    @property
    def recall_samples(self) -> int:
        """Exercises in remembering that calibration adds to its text."""
        if self.num_recall_samples is not None:
            return self.num_recall_samples
        return max(8, self.num_calibration_samples // 4)

    @property
    def latent_kind(self) -> LatentKind | None:
        """The kind of latent that every layer gets; None where the conversion chooses."""
        found = (kind for kind in LATENT_KINDS.values() if kind.name == self.compression_method)
        return next(found, None)

    @property
    def weighs_speed(self) -> bool:
        """Whether the kind of each layer's latent is chosen by how fast it is read, too."""
        if self.compression_method != AUTO or self.objective == "memory":
            return False
        return self.objective == "speed" or self.coded

    @property
    def reads_text(self) -> bool:
        """Whether the metric is found on calibration text."""
        return METRICS[self.metric].reads_text

    @property
    def coded(self) -> bool:
        """Whether latents are stored as rows of few-bit codes."""
        if self.cache_bits == AUTO:
            fixed_ranks = self.d_latent is not None or self.rank_allocation != "global"
            can_code = self.latent_kind is None or self.latent_kind.coded
            return can_code and not fixed_ranks and self.compression_ratio != 1
        return self.cache_bits != 16

    def row_format(self, alignment: int) -> RowFormat:
        """How this setting of `cache_bits` writes rows."""
        return RowFormat(
            half="bfloat16" if self.cache_bits == "bf16" else "float16",
            byte={"fp8": "e4m3", "fp8_e5m2": "e5m2"}.get(str(self.cache_bits), "uniform"),
            alignment=alignment,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompressionConfig:
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"unknown settings {', '.join(unknown)}; a newer version wrote them")
        return cls(**values)
