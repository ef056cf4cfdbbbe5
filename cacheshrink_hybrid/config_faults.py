"""What is wrong with the settings of a conversion, each by itself and together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from .codecs.names import STATE_CODES
from .device_profile import DeviceProfile
from .errors import ConfigError
from .integers import count_fault, seed_fault
from .methods import (
    AUTO,
    FISHER_LABELS,
    LATENT_KINDS,
    METRICS,
    OBJECTIVES,
    RANK_ALLOCATIONS,
    STATE_METHODS,
    WIDTHS_OF,
    choices,
)


def allowed_names() -> dict[str, tuple[str, ...]]:
    """What settings may be that are one of several names."""
    return {
        "compression_method": choices(LATENT_KINDS),
        "objective": OBJECTIVES,
        "metric": tuple(METRICS),
        "fisher_labels": FISHER_LABELS,
        "rank_allocation": RANK_ALLOCATIONS,
        "state_dtype": (AUTO, *STATE_CODES),
        "state_method": choices(STATE_METHODS),
    }


def setting_faults(config: Any) -> Iterator[str]:
    """All that is wrong with a `CompressionConfig`, in words."""
    yield from _ratio_faults(config, "compression_ratio", "4.0 means four times fewer bytes")
    yield from _state_faults(config)
    for name, allowed in allowed_names().items():
        value = getattr(config, name)
        if value not in allowed:
            yield f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}"
    yield from _faults_of_sizes(config)
    yield from _faults_of_reading(config)
    if not (isinstance(config.metric_damping, (int, float)) and 0 < config.metric_damping < 1):
        yield f"metric_damping={config.metric_damping!r} must lie between 0 and 1"
    yield from _faults_of_unused_settings(config)
    yield from _counts(config, least=1, names=("cross_layer_group_size",))
    yield from _counts(config, least=0, names=("xkv_skip_early_layers",))
    yield from _faults_of_decoupling(config)
    yield from _faults_of_groups(config)
    if config.keep_early_layers_original and config.xkv_skip_early_layers == 0:
        yield (
            "keep_early_layers_original=True needs xkv_skip_early_layers >= 1, "
            "which says how many layers to keep"
        )
    given = [n for n in ("exact_sinks", "exact_window") if getattr(config, n) is not None]
    for name in given:
        fault = count_fault(name, getattr(config, name), 0)
        if fault is not None:
            yield fault
        elif getattr(config, name) and not config.coded:
            yield (
                f"{name}={getattr(config, name)!r} keeps tokens from being coded, and these "
                "settings code none; leave it out"
            )
    yield from _faults_of_calibration(config)


def _ratio_faults(config: Any, name: str, meaning: str) -> Iterator[str]:
    ratio = getattr(config, name)
    if not isinstance(ratio, (int, float)) or isinstance(ratio, bool):
        yield f"{name}={ratio!r} is no number; give one >= 1"
    elif not math.isfinite(ratio) or ratio < 1:
        yield f"{name}={ratio!r} must be a finite number >= 1 ({meaning})"


def _faults_of_sizes(config: Any) -> Iterator[str]:
    """Of ranks and widths."""
    kind = config.latent_kind
    if config.cache_bits not in WIDTHS_OF:
        yield f"cache_bits={config.cache_bits!r} is unknown; choose one of {list(WIDTHS_OF)}"
    elif config.cache_bits not in (16, AUTO):
        if kind is not None and not kind.coded:
            yield f"compression_method={kind.name!r} stores 16 bits only; leave cache_bits out"
        if config.d_latent is not None or config.rank_allocation != "global":
            yield (
                f"cache_bits={config.cache_bits!r} chooses ranks together with widths; leave "
                "d_latent and rank_allocation out, or give cache_bits=16"
            )
    if config.d_latent is not None:
        yield from _counts(config, least=1, names=("d_latent",))
        if _is_given(config, "compression_ratio"):
            yield (
                f"d_latent={config.d_latent!r} and compression_ratio={config.compression_ratio!r} "
                "both fix the size; give one of them"
            )
        if config.compression_method == AUTO:
            yield (
                "d_latent means different things to different methods; "
                f"give compression_method {_ranked_kinds()} with it"
            )


def _faults_of_decoupling(config: Any) -> Iterator[str]:
    kind, width = config.latent_kind, config.qk_rope_head_dim
    if width is not None:
        fault = count_fault("qk_rope_head_dim", width, 2)
        if fault is not None:
            yield fault
        elif width % 2:
            yield (
                f"qk_rope_head_dim={width!r} is odd, and channels rotate in pairs; give {width + 1}"
            )
    if kind is not None and kind.decouples and config.metric != "fisher":
        yield (
            f"metric={config.metric!r} does not say what rotation is worth, which "
            f"compression_method={kind.name!r} has to weigh; leave metric out, or calibrate "
            "where it is 'none'"
        )


def _faults_of_groups(config: Any) -> Iterator[str]:
    fault, kind = count_fault("head_groups", config.head_groups, 1), config.latent_kind
    if fault is not None:
        yield fault
    elif config.head_groups > 1 and kind is not None and not kind.groups_heads:
        yield (
            f"head_groups={config.head_groups} divides latents by heads, and those of "
            f"compression_method={kind.name!r} are of all heads; leave it out, or give another "
            "method"
        )
    elif config.head_groups > 1 and config.d_latent is not None:
        yield (
            f"d_latent={config.d_latent} counts channels of all heads, and head_groups="
            f"{config.head_groups} divides them; give a compression_ratio instead"
        )


def _faults_of_calibration(config: Any) -> Iterator[str]:
    if config.num_recall_samples is not None:
        yield from _counts(config, least=0, names=("num_recall_samples",))
        metric = next((row for row in METRICS.values() if row.name == config.metric), None)
        if config.num_recall_samples and metric is not None and not metric.reads_text:
            yield (
                f"num_recall_samples={config.num_recall_samples} has no use with "
                f"metric={metric.name!r}, which reads no text; leave it out"
            )
    yield from _counts(config, least=1, names=("num_calibration_samples",))
    # The loss is that of a next token.
    yield from _counts(config, least=2, names=("max_calibration_length",))
    fault = seed_fault("seed", config.seed)
    if fault is not None:
        yield fault


def _faults_of_unused_settings(config: Any) -> Iterator[str]:
    """Settings of one method, or of some metrics, that are given without it."""
    for name in dict.fromkeys(name for row in METRICS.values() for name in row.settings):
        users = [row.name for row in METRICS.values() if name in row.settings]
        if config.metric not in users and _is_given(config, name):
            yield (
                f"{name}={getattr(config, name)!r} has no effect with metric={config.metric!r}, "
                f"only with {' and '.join(users)}; leave it out"
            )
    for kind in LATENT_KINDS.values():
        for name in kind.settings:
            if config.compression_method != kind.name and _is_given(config, name):
                yield (
                    f"{name}={getattr(config, name)!r} is used by compression_method="
                    f"{kind.name!r} only, not by {config.compression_method!r}; leave it out"
                )


def _is_given(config: Any, name: str) -> bool:
    return getattr(config, name) != type(config).__dataclass_fields__[name].default


def _faults_of_reading(config: Any) -> Iterator[str]:
    try:
        if config.device_profile != AUTO:
            DeviceProfile.parse(config.device_profile)
    except ConfigError as error:
        yield str(error)
    if _is_given(config, "objective") and config.compression_method != AUTO:
        yield (
            f"objective={config.objective!r} chooses the method by layer, so it cannot be given "
            f"with compression_method={config.compression_method!r}; leave one of them out"
        )
    elif _is_given(config, "device_profile") and not config.weighs_speed:
        yield (
            f"device_profile={config.device_profile!r} is for choosing kinds of few-bit latents by "
            "speed, which these settings do not; leave it out, or give objective='auto' or 'speed'"
        )
    ranked = config.latent_kind.ranked if config.latent_kind else config.objective != "speed"
    if not ranked and (config.d_latent is not None or config.rank_allocation != "global"):
        yield (
            f"d_latent and rank_allocation are for compression_method {_ranked_kinds()}; leave "
            "them out"
        )
    leveled = config.coded and config.cache_bits in ("auto", 8, 4)
    if not leveled and config.hadamard:
        yield (
            "hadamard is for few-bit levels, which these settings do not use "
            f"(cache_bits={config.cache_bits!r}); leave it out"
        )


def _state_faults(config: Any) -> Iterator[str]:
    meaning = "2.0 means that recurrent states take half their bytes, 1.0 leaves them as they are"
    yield from _ratio_faults(config, "state_ratio", meaning)
    optional = ("replay_length", "budget_bytes", "context_length")
    given = [name for name in optional if getattr(config, name) is not None]
    yield from _counts(config, least=1, names=given)
    if (config.budget_bytes is None) != (config.context_length is None):
        yield (
            f"budget_bytes={config.budget_bytes!r} and context_length={config.context_length!r} "
            "go together: so many bytes for a sequence of so many tokens"
        )
    if config.budget_bytes is not None:
        for name in ("compression_ratio", "state_ratio", "d_latent", "rank_allocation"):
            if _is_given(config, name):
                yield (
                    f"{name}={getattr(config, name)!r} and budget_bytes={config.budget_bytes!r} "
                    "both fix the size; give one of them"
                )
    if not config.changes_states:
        for name in ("state_method", "replay_length"):
            if _is_given(config, name):
                yield (
                    f"{name}={getattr(config, name)!r} has no use where recurrent states are "
                    "left as they are; give state_ratio, state_dtype or budget_bytes with it"
                )


def _counts(config: Any, *, least: int, names: Iterable[str]) -> Iterator[str]:
    """What is wrong with settings that count something."""
    for name in names:
        fault = count_fault(name, getattr(config, name), least)
        if fault is not None:
            yield fault


def _ranked_kinds() -> str:
    """Names of the methods whose ranks can be given, in words."""
    *names, last = [repr(kind.name) for kind in LATENT_KINDS.values() if kind.ranked]
    return f"{', '.join(names)} or {last}"
