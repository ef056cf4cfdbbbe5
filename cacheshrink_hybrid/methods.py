"""What a user chooses by name, one row each: how keys and values are stored, what counts as loss,
and how recurrent states are narrowed.

A row has what the rest of the package must know of a choice, and where the function or class is
that carries it out, which is imported when it is needed: nothing here imports torch. A choice is
added by a row here and that function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .lazy import imported

AUTO = "auto"
"""In the place of a name: leave the choice to the conversion."""
OBJECTIVES = ("memory", "speed", "auto")
NATS = "nats/token"
"""Unit of losses that are the model's own."""
RANK_ALLOCATIONS = ("global", "uniform")
FISHER_LABELS = ("text", "model")
"""Whose next tokens the loss of the `fisher` metric is of."""
WIDTHS_OF: dict[int | str, tuple[int, ...]] = {
    AUTO: (1, 2, 3, 4, 5, 6, 8, 16),
    16: (16,),
    8: (8,),
    4: (4,),
    "fp8": (8,),
    "fp8_e5m2": (8,),
    "fp16": (16,),
    "bf16": (16,),
}
"""Widths in bits that a setting of `cache_bits` lets a run of channels have, besides 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentKind:
    """A kind of latent that keys and values are stored in.

    Attributes:
        name: as `compression_method` and in `LatentPlan.method`.
        words: what it is, for `--help`.
        fit: `module:function` from modules to their bases, see `latents.fit.factors.Fit`.
        settings: of `CompressionConfig`, that only this method uses; its function gets them by
            name.
        joint: keys and values are made of the same channels; else of channels apart.
        per_head: the keys of each head are made of channels of its own.
        read_mode: how keys are read, see `LatentPlan`; None for what suits the module best.
        rotary_only: for modules that rotate their keys; others get a joint latent.
        ranked: its bases have spectra, so that ranks can be given or be equal everywhere; else
            channels are chosen one by one.
        coded: its latents can be coded in few bits.
        groups_heads: groups of heads can have latents of their own (`head_groups`).
    """

    name: str
    words: str
    fit: str
    settings: tuple[str, ...] = ()
    joint: bool = False
    per_head: bool = False
    read_mode: str | None = None
    rotary_only: bool = False
    ranked: bool = True
    coded: bool = True
    groups_heads: bool = True

    @property
    def mixes_keys(self) -> bool:
        """Whether any key channels of a run may be mixed with each other."""
        return not self.per_head

    @property
    def stores_rotated(self) -> bool:
        """Whether keys are rotated by their place in a block of slots before they are stored."""
        return self.read_mode == "rotate"

    @property
    def decouples(self) -> bool:
        """Whether a part of the keys is rotated by its slot, and the rest not at all; then the
        metric's gradients are taken of both."""
        return self.read_mode == "decoupled"

    def function(self) -> Any:
        return imported(self.fit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What counts as loss.

    Attributes:
        name: as `metric`.
        words: what it is, for `--help`.
        observer: `module:class` that watches a module and gives its matrix M, see
            `latents.fit.metrics`; None where no text is read.
        backward: takes the gradients of a backward pass.
        weighs_outputs: without them, errors of a state count by the output projection.
        unit: of losses, in words; None for one of its own.
        settings: of `CompressionConfig`, that have no effect with other metrics.
    """

    name: str
    words: str
    observer: str | None
    backward: bool = False
    weighs_outputs: bool = False
    unit: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def reads_text(self) -> bool:
        return self.observer is not None

    def observer_class(self) -> Any:
        assert self.observer is not None
        return imported(self.observer)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMethod:
    """A way of leaving channels of recurrent states out.

    Attributes:
        name: as `state_method` and in `StatePlan.method`.
        words: what it is, for `--help`.
        basis: `module:function` from the moments of a group to its nested bases, see
            `states.fit.bases.GroupMoments`.
        selects: keeps some of the source's channels, instead of directions.
        refits: what reads the channels that are kept makes up for the others.
        learns_write: training may change what is written, and not only what is read.
        constrained: directions are orthonormal, and training keeps them so.
    """

    name: str
    words: str
    basis: str
    selects: bool = False
    refits: bool = False
    learns_write: bool = False
    constrained: bool = False

    def function(self) -> Any:
        return imported(self.basis)


_FIT = "cacheshrink_hybrid.latents.fit"
LATENT_KINDS: dict[str, LatentKind] = {
    row.name: row
    for row in (
        LatentKind(
            name="joint",
            words="one latent for [k; v] of a layer",
            fit=f"{_FIT}.bases:joint",
            joint=True,
        ),
        LatentKind(name="separate", words="K and V apart", fit=f"{_FIT}.bases:separate"),
        LatentKind(
            name="xkv",
            words="separate, with bases shared by groups of layers",
            fit=f"{_FIT}.bases:shared_by_groups",
            settings=(
                "cross_layer_group_size",
                "xkv_skip_early_layers",
                "keep_early_layers_original",
            ),
            coded=False,
            groups_heads=False,
        ),
        LatentKind(
            name="per_head",
            words="a latent for the keys of each head, one for all values",
            fit=f"{_FIT}.per_head:per_head",
            per_head=True,
            rotary_only=True,
            ranked=False,
        ),
        LatentKind(
            name="rotate",
            words="K and V apart, K stored rotated within blocks of slots",
            fit=f"{_FIT}.rotate:rotated",
            read_mode="rotate",
            rotary_only=True,
            ranked=False,
        ),
        LatentKind(
            name="rotate_joint",
            words="one latent for [k; v], k stored rotated within blocks of slots",
            fit=f"{_FIT}.rotate:rotated_joint",
            joint=True,
            read_mode="rotate",
            rotary_only=True,
            ranked=False,
        ),
        LatentKind(
            name="decoupled_rope",
            words="MLA: one rotary key for all heads, the rest of k in one latent with v",
            fit=f"{_FIT}.decoupled:decoupled",
            settings=("qk_rope_head_dim",),
            joint=True,
            read_mode="decoupled",
            rotary_only=True,
            coded=False,
            groups_heads=False,
        ),
    )
}
METRICS: dict[str, Metric] = {
    row.name: row
    for row in (
        Metric(
            name="fisher",
            words="the model's own loss, one backward pass",
            observer=f"{_FIT}.metrics:FisherMetric",
            backward=True,
            unit=NATS,
            settings=("metric_damping", "fisher_labels", "seed"),
        ),
        Metric(
            name="score",
            words="queries and output projection, no backward pass",
            observer=f"{_FIT}.metrics:ScoreMetric",
            weighs_outputs=True,
            settings=("metric_damping",),
        ),
        Metric(name="activation", words="plain PCA", observer=f"{_FIT}.metrics:ActivationMetric"),
        Metric(name="none", words="weights only, no text", observer=None),
    )
}
_BASES = "cacheshrink_hybrid.states.fit.bases"
STATE_METHODS: dict[str, StateMethod] = {
    row.name: row
    for row in (
        StateMethod(
            name="oblique",
            words="the best r directions to write and to read, the default of Mamba-2",
            basis=f"{_BASES}:oblique",
            learns_write=True,
        ),
        StateMethod(
            name="orthonormal",
            words="directions of keys and queries together, the default of gated delta nets",
            basis=f"{_BASES}:orthonormal",
            constrained=True,
        ),
        StateMethod(
            name="select",
            words="r of the channels, reading refitted, the default of Mamba-1 (the others go from "
            "weights and convolution state as well)",
            basis=f"{_BASES}:selected",
            selects=True,
            refits=True,
        ),
        StateMethod(
            name="prune",
            words="channels by score, nothing refitted, to compare with",
            basis=f"{_BASES}:pruned",
            selects=True,
        ),
        StateMethod(
            name="principal",
            words="orthonormal directions of B and C of Mamba-2, to compare with",
            basis=f"{_BASES}:orthonormal",
        ),
    )
}

TABLES: dict[str, dict[str, Any]] = {
    "compression_method": LATENT_KINDS,
    "metric": METRICS,
    "state_method": STATE_METHODS,
}
"""Settings that are the name of a row, and the rows."""


def choices(rows: dict[str, Any]) -> tuple[str, ...]:
    """What a setting may be whose rows these are: `auto`, or one of them."""
    return AUTO, *rows
