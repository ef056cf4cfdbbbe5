"""Kinds of recurrent mixers whose states can be compressed: one row each.

A kind is added by a row here, its class, and the sizes of its state in `families/states.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..lazy import imported
from ..methods import AUTO
from ..spec import LayerSpec, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerKind:
    """What is known of a kind beside its arithmetic, which is that of its class.

    Attributes:
        name: as `StateSpec.kind`.
        title: what papers call it.
        mixer: `module:class` of the compressed mixer, a `RecurrentMixer`.
        methods: rows of `STATE_METHODS` that its recurrence commutes with, its default first.
        folded_columns: by method, convolution channels that go with every dropped state channel.
        inputs: of one token to the recurrence, in the order of the ring: `values` (M * P), `writes`
            (B or keys, all ranks) and `decays`, what a head's decay is computed from (M, float32).
        replayed: a kernel replays its ring.
    """

    name: str
    title: str
    mixer: str
    methods: tuple[str, ...]
    inputs: tuple[str, ...]
    folded_columns: dict[str, int] = field(default_factory=dict)
    replayed: bool = True

    @property
    def exact_inputs(self) -> tuple[int, ...]:
        """Positions of the inputs that a ring keeps in float32."""
        return tuple(i for i, name in enumerate(self.inputs) if name == "decays")

    def mixer_class(self) -> Any:
        return imported(self.mixer)

    def method(self, wanted: str) -> str:
        """The method that a setting of `state_method` means here, allowed or not."""
        return self.methods[0] if wanted == AUTO else wanted


_MIXERS = "cacheshrink_hybrid.states.mixers"
MIXER_KINDS: dict[str, MixerKind] = {
    row.name: row
    for row in (
        MixerKind(
            name="mamba2",
            title="Mamba-2",
            mixer=f"{_MIXERS}.mamba2:Mamba2Mixer",
            methods=("oblique", "select", "prune", "principal"),
            # B's channel; and C's, unless what reads the others is refitted.
            folded_columns={"select": 1, "prune": 2},
            inputs=("values", "decays", "writes"),
        ),
        MixerKind(
            name="gated_delta_net",
            title="Gated DeltaNet",
            mixer=f"{_MIXERS}.gated_delta_net:GatedDeltaNetMixer",
            methods=("orthonormal",),
            inputs=("writes", "values", "decays", "decays"),
        ),
        MixerKind(
            name="mamba",
            title="Mamba-1",
            mixer=f"{_MIXERS}.mamba1:Mamba1Mixer",
            methods=("select", "prune"),
            inputs=("values", "values", "writes"),
            replayed=False,
        ),
    )
}


def compressible_layers(spec: ModelSpec) -> tuple[LayerSpec, ...]:
    """The recurrent layers that a conversion can change."""
    return tuple(
        layer
        for layer in spec.state_layers
        if layer.state is not None and layer.state.kind in MIXER_KINDS
    )
