"""Compressed mixers in the places of a source's, and out of them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from ...derived_class import derived_class
from ...spec import StateSpec
from ..kinds import MIXER_KINDS
from ..plan import StatePlan
from .mixer import Observer, RecurrentMixer


def install_mixer(
    module: nn.Module,
    spec: StateSpec,
    plan: StatePlan | None,
    read: Tensor | None = None,
    *,
    keep_source: bool = False,
) -> RecurrentMixer:
    """Turn a source's mixer into a compressed one, in place; see `compress_state`."""
    source_class: Any = type(module)
    module.__class__ = derived_class(MIXER_KINDS[spec.kind].mixer_class(), source_class)
    assert isinstance(module, RecurrentMixer)
    module.form = spec.form
    module.compress_state(plan, read, keep_source=keep_source)
    return module


def take_over_layers(model: nn.Module, cache: Cache) -> None:
    """Make the layers of a cache those of the model's compressed mixers, before any pass."""
    for module in model.modules():
        if not isinstance(module, RecurrentMixer) or module.state_plan is None:
            continue
        if not module.compression_disabled:
            module.take_over(cache)


MIXER_ATTRIBUTES = (
    "form",
    "state_plan",
    "state_observer",
    "compression_disabled",
    "folded",
    "_codec",
    "_ranks_differ",
)


def uninstall_mixer(module: RecurrentMixer) -> None:
    """Give a mixer its source's class back."""
    for name in ("state_write", "state_read"):
        del module._parameters[name]
    del module._modules["source_weights"]
    for name in MIXER_ATTRIBUTES:
        module.__dict__.pop(name, None)
    module.__class__ = module.made_of[1]


def unfoldable_weight(module: nn.Module, kind: str) -> str | None:
    """Name of a weight of a source's mixer that is no parameter of its own, so that folding could
    not replace it: a parametrized, pruned or offloaded one. None if there is none."""
    for name in MIXER_KINDS[kind].mixer_class().foldable:
        path, _, leaf = name.rpartition(".")
        owner = getattr(module, path, None) if path else module
        if owner is None or not hasattr(owner, leaf):
            continue
        parameter = owner._parameters.get(leaf)
        if parameter is None or parameter.is_meta:
            return name
    return None


@contextmanager
def observed_mixers(
    mixers: Iterable[tuple[nn.Module, StateSpec]], observer: Observer
) -> Iterator[None]:
    """Within this context `observer` sees what each mixer writes and reads."""
    installed = [install_mixer(module, spec, None) for module, spec in mixers]
    for mixer in installed:
        mixer.state_observer = observer
    try:
        yield
    finally:
        for mixer in installed:
            uninstall_mixer(mixer)
