"""What the user asked for: one frozen record behind the parameters of `convert_to_mla`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .codecs.names import SCALES, STATE_CODES
from .codecs.row_format import RowFormat
from .device_profile import DeviceProfile
from .errors import ConfigError, misplaced_settings
from .integers import count_fault, seed_fault

METHODS = ("auto", "joint", "separate", "xkv", "per_head", "rotate")
OBJECTIVES = ("memory", "speed", "auto")
METRICS = ("fisher", "score", "activation", "none")
RANK_ALLOCATIONS = ("global", "uniform")
WIDTHS_OF: dict[int | str, tuple[int, ...]] = {
    "auto": (2, 4, 8, 16),
    16: (16,),
    8: (8,),
    4: (4,),
    "fp8": (8,),
    "fp8_e5m2": (8,),
    "fp16": (16,),
    "bf16": (16,),
}
"""Widths in bits that a setting of `cache_bits` lets a run of channels have, besides 0."""
STATE_METHODS = ("auto", "oblique", "orthonormal", "select", "prune", "principal")
DEFAULT_RATIO = 4.0
DEFAULT_DEVICE_PROFILE = "H100"
HEADWISE_METHODS = ("per_head", "rotate")
"""Methods for layers that rotate their keys; other layers take `joint` beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionConfig:
    """How far, and by which method, the attention cache is compressed.

    Attributes:
        compression_ratio: original cache bytes per token at 16 bits per element, divided by the
            bytes per token stored. 1.0 keeps every rank (an exact rewrite).
        compression_method: `joint` (one latent for [k; v] of a layer), `separate` (K and V apart),
            `xkv` (separate, with bases shared by groups of layers), `per_head` (a latent for the
            keys of each head, one for all values), `rotate` (keys stored after rotation, in a basis
            that commutes with it) or `auto` (by layer, as `objective` says).
        objective: what `auto` goes by: `memory` (joint; with 16 bits separate where that loses
            nothing, because it is cheaper to read), `speed` (the kind that a decode step reads
            fastest by a model of the device), `auto` (as speed, where the loss stays close).
        device_profile: the device of that model: a name of `device_profile.DEVICE_PROFILES`,
            or `BYTES_PER_SECOND:OPERATIONS_PER_SECOND`.
        d_latent: explicit number of latent channels instead of a ratio: per layer for `joint`,
            for K and for V each with `separate` and `xkv`.
        cache_bits: bits per stored latent element. `auto` chooses 16, 8, 4, 2 or 0 for every run of
            channels by what it is worth, and 16 throughout where ranks are fixed (`d_latent`,
            `uniform`, `xkv`) or nothing is to be saved (ratio 1); 8 and 4 choose between that
            width and 0; 16 stores latents as they are, in the model's dtype. `fp8` (e4m3),
            `fp8_e5m2`, `fp16` and `bf16` store all kept channels in that number format.
        scales: of few-bit channels: `static` (calibrated once, tokens that reach further escape by
            a gain, where that is worth its byte) or `token` (a float16 scale per token and width).
        hadamard: mix the channels of each run by a Hadamard matrix before they are coded.
        exact_sinks: first tokens of a sequence that stay at 16 bits, beside few-bit rows, in layers
            without a sliding window.
        exact_window: most recent tokens that stay at 16 bits.
        metric: what counts as loss: `fisher` (the model's own loss, one backward pass), `score`
            (queries and output projection, no backward pass), `activation` (plain PCA), `none`
            (weights only, no text).
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
        state_method: `auto` (by kind of mixer), `oblique` (the best r directions to write and to
            read, the default of Mamba-2), `orthonormal` (of keys and queries together, the one of
            gated delta nets), `select` (r of the channels, reading refitted, the one of Mamba-1;
            dropped channels go from the weights and from the convolution state as well); and to
            compare with, `prune` (channels by score, nothing refitted) and `principal` (orthonormal
            directions of B and C, Mamba-2).
        replay_length: tokens between two rewritings of a state; the inputs since then are kept in a
            ring. None chooses by predicted loss, the ring's bytes included; 1 has no ring.
        budget_bytes: bytes that one sequence of `context_length` tokens may take, KV and states
            together, instead of the two ratios; they are divided where the loss is least.
        context_length: tokens that `budget_bytes` is meant for.
        num_calibration_samples: sequences of calibration text.
        max_calibration_length: tokens per calibration sequence.
        num_recall_samples: short exercises in remembering (`key: value` lists and random letters
            that return) beside the calibration text, which seldom asks for what a state alone
            remembers. None: a quarter of `num_calibration_samples`, at least 8, where recurrent
            states are to be compressed, else none.
        seed: seeds the labels that the `fisher` metric samples.
    """

    compression_ratio: float = DEFAULT_RATIO
    compression_method: str = "auto"
    d_latent: int | None = None
    objective: str = "memory"
    device_profile: str = DEFAULT_DEVICE_PROFILE
    cache_bits: int | str = "auto"
    scales: str = "static"
    hadamard: bool = False
    exact_sinks: int = 0
    exact_window: int = 0
    metric: str = "fisher"
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
        faults = list(misplaced_settings(self)) or list(self._faults())
        if faults:
            raise ConfigError("; ".join(faults))

    def _faults(self):
        ratio = self.compression_ratio
        if not isinstance(ratio, (int, float)) or isinstance(ratio, bool):
            yield f"compression_ratio={ratio!r} is no number; give one >= 1"
        elif math.isnan(ratio) or math.isinf(ratio) or ratio < 1:
            yield (
                f"compression_ratio={ratio!r} must be a finite number >= 1 "
                "(4.0 means four times fewer bytes)"
            )
        yield from self._state_faults()
        for name, allowed in (
            ("state_dtype", ("auto", *STATE_CODES)),
            ("state_method", STATE_METHODS),
            ("compression_method", METHODS),
            ("objective", OBJECTIVES),
            ("scales", SCALES),
            ("metric", METRICS),
            ("rank_allocation", RANK_ALLOCATIONS),
        ):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                yield f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}"
        if self.cache_bits not in WIDTHS_OF:
            yield f"cache_bits={self.cache_bits!r} is unknown; choose one of {list(WIDTHS_OF)}"
        elif self.cache_bits not in (16, "auto"):
            if self.compression_method == "xkv":
                yield "compression_method='xkv' stores 16 bits only; leave cache_bits out"
            if self.d_latent is not None or self.rank_allocation != "global":
                yield (
                    f"cache_bits={self.cache_bits!r} chooses ranks together with widths; leave "
                    "d_latent and rank_allocation out, or give cache_bits=16"
                )
        yield from self._faults_of_reading()
        if self.d_latent is not None:
            yield from _counts(self, least=1, names=("d_latent",))
            if ratio != DEFAULT_RATIO:
                yield (
                    f"d_latent={self.d_latent!r} and compression_ratio={ratio!r} both fix the "
                    "size; give one of them"
                )
            if self.compression_method == "auto":
                yield (
                    "d_latent means different things to different methods; "
                    "give compression_method 'joint', 'separate' or 'xkv' with it"
                )
        if not (isinstance(self.metric_damping, (int, float)) and 0 < self.metric_damping < 1):
            yield f"metric_damping={self.metric_damping!r} must lie between 0 and 1"
        defaults = type(self).__dataclass_fields__
        for name, users in (("metric_damping", ("fisher", "score")), ("seed", ("fisher",))):
            if self.metric not in users and getattr(self, name) != defaults[name].default:
                yield (
                    f"{name}={getattr(self, name)!r} has no effect with metric={self.metric!r}, "
                    f"only with {' and '.join(users)}; leave it out"
                )
        yield from _counts(self, least=1, names=("cross_layer_group_size",))
        yield from _counts(self, least=0, names=("xkv_skip_early_layers",))
        if self.compression_method != "xkv":
            for name in (
                "cross_layer_group_size",
                "xkv_skip_early_layers",
                "keep_early_layers_original",
            ):
                if getattr(self, name) != defaults[name].default:
                    yield (
                        f"{name}={getattr(self, name)!r} is used by compression_method='xkv' only, "
                        f"not by {self.compression_method!r}; leave it out"
                    )
        if self.keep_early_layers_original and self.xkv_skip_early_layers == 0:
            yield (
                "keep_early_layers_original=True needs xkv_skip_early_layers >= 1, "
                "which says how many layers to keep"
            )
        for name in ("exact_sinks", "exact_window"):
            fault = count_fault(name, getattr(self, name), 0)
            if fault is not None:
                yield fault
            elif getattr(self, name) and not self.coded:
                yield (
                    f"{name}={getattr(self, name)!r} keeps tokens from being coded, and these "
                    "settings code none; leave it out"
                )
        if self.num_recall_samples is not None:
            yield from _counts(self, least=0, names=("num_recall_samples",))
            if self.num_recall_samples and self.metric == "none":
                yield (
                    f"num_recall_samples={self.num_recall_samples} has no use with metric='none', "
                    "which reads no text; leave it out"
                )
        yield from _counts(self, least=1, names=("num_calibration_samples",))
        # The loss is that of a next token.
        yield from _counts(self, least=2, names=("max_calibration_length",))
        fault = seed_fault("seed", self.seed)
        if fault is not None:
            yield fault

    def _faults_of_reading(self):
        try:
            DeviceProfile.parse(self.device_profile)
        except ConfigError as error:
            yield str(error)
        if self.objective == "memory" and self.device_profile != DEFAULT_DEVICE_PROFILE:
            yield (
                f"device_profile={self.device_profile!r} is used by objective='speed' and 'auto' "
                "only; leave it out, or choose an objective"
            )
        if self.objective != "memory" and self.compression_method != "auto":
            yield (
                f"objective={self.objective!r} chooses the method by layer, so it cannot be given "
                f"with compression_method={self.compression_method!r}; leave one of them out"
            )
        by_layer = self.objective != "memory" or self.compression_method in HEADWISE_METHODS
        if by_layer and (self.d_latent is not None or self.rank_allocation != "global"):
            yield (
                "d_latent and rank_allocation are for compression_method 'joint', 'separate' and "
                "'xkv'; leave them out"
            )
        leveled = self.coded and self.cache_bits in ("auto", 8, 4)
        if not leveled and (self.scales != "static" or self.hadamard):
            yield (
                "scales and hadamard are for few-bit levels, which these settings do not use "
                f"(cache_bits={self.cache_bits!r}); leave them out"
            )

    def _state_faults(self):
        ratio = self.state_ratio
        number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not number or not math.isfinite(ratio) or ratio < 1:
            yield (
                f"state_ratio={ratio!r} must be a finite number >= 1 (2.0 means that recurrent "
                "states take half their bytes, 1.0 leaves them as they are)"
            )
        optional = ("replay_length", "budget_bytes", "context_length")
        given = [name for name in optional if getattr(self, name) is not None]
        yield from _counts(self, least=1, names=given)
        if (self.budget_bytes is None) != (self.context_length is None):
            yield (
                f"budget_bytes={self.budget_bytes!r} and context_length={self.context_length!r} "
                "go together: so many bytes for a sequence of so many tokens"
            )
        if self.budget_bytes is not None:
            fixed = {
                "compression_ratio": DEFAULT_RATIO,
                "state_ratio": 1.0,
                "d_latent": None,
                "rank_allocation": "global",
            }
            for name, default in fixed.items():
                if getattr(self, name) != default:
                    yield (
                        f"{name}={getattr(self, name)!r} and budget_bytes={self.budget_bytes!r} "
                        "both fix the size; give one of them"
                    )
        if not self.changes_states:
            for name in ("state_method", "replay_length"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    yield (
                        f"{name}={getattr(self, name)!r} has no use where recurrent states are "
                        "left as they are; give state_ratio, state_dtype or budget_bytes with it"
                    )

    @property
    def changes_states(self) -> bool:
        """Whether recurrent layers are converted at all."""
        return self.state_ratio != 1 or self.state_dtype != "auto" or self.budget_bytes is not None

    @property
    def recall_samples(self) -> int:
        """Exercises in remembering that calibration adds to its text."""
        if self.num_recall_samples is not None:
            return self.num_recall_samples
        return max(8, self.num_calibration_samples // 4) if self.changes_states else 0

    @property
    def coded(self) -> bool:
        """Whether latents are stored as rows of few-bit codes."""
        if self.cache_bits == "auto":
            fixed_ranks = self.d_latent is not None or self.rank_allocation != "global"
            return not (
                fixed_ranks or self.compression_method == "xkv" or self.compression_ratio == 1
            )
        return self.cache_bits != 16

    def row_format(self, alignment: int) -> RowFormat:
        """How this setting of `cache_bits` writes rows."""
        return RowFormat(
            scales=self.scales,
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


def _counts(config: CompressionConfig, *, least: int, names: Iterable[str]) -> Iterator[str]:
    """What is wrong with settings that count something."""
    for name in names:
        fault = count_fault(name, getattr(config, name), least)
        if fault is not None:
            yield fault
