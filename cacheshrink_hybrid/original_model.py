"""The original that a converted model keeps inside (`store_original_weights=True`): switching back
to it, and keeping the weights that both share as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from .errors import UnsupportedModelError
from .modules.latent_attention import LatentAttention
from .modules.recurrent_mixer import RecurrentMixer

KEPT_VALUES = "source_values"
"""Attribute of a converted model that was trained: parameters its source has too, and the source's
values of them."""


@contextmanager
def compression_disabled(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within this context `model` computes what its source computed, with full keys and values.

    A cache that was filled inside must not be used outside, nor the other way round.

    Raises:
        UnsupportedModelError: if the model was converted without `store_original_weights=True`.
    """
    switched = _compressed(model)
    if not _keep_original(switched):
        raise UnsupportedModelError(
            "the original weights are not there to switch back to; convert with "
            "store_original_weights=True"
        )
    kept = model.__dict__.get(KEPT_VALUES, [])
    trained = [parameter.data for parameter, _ in kept]
    for module in switched:
        module.compression_disabled = True
    for parameter, first in kept:
        parameter.data = first.to(parameter.device, parameter.dtype)
    try:
        yield model
    finally:
        for (parameter, _), data in zip(kept, trained, strict=True):
            parameter.data = data
        for module in switched:
            module.compression_disabled = False


def has_original_weights(model: PreTrainedModel) -> bool:
    """Whether a converted model can switch back to its source (`compression_disabled`)."""
    return _keep_original(_compressed(model))


def _compressed(model: nn.Module) -> list[LatentAttention | RecurrentMixer]:
    kinds = (LatentAttention, RecurrentMixer)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _keep_original(modules: Sequence[LatentAttention | RecurrentMixer]) -> bool:
    return bool(modules) and not any(
        module.source_attention is None
        if isinstance(module, LatentAttention)
        else module.folded and not len(module.source_weights)
        for module in modules
    )


def keep_source_values(model: PreTrainedModel, parameters: Iterable[nn.Parameter]) -> None:
    """Let `compression_disabled` go on computing with the values that parameters have now, whatever
    training makes of them; the first values kept are those that count."""
    kept = model.__dict__.setdefault(KEPT_VALUES, [])
    known = {id(parameter) for parameter, _ in kept}
    kept += [(p, p.data.clone()) for p in parameters if id(p) not in known]


def parameters_with_source_values(model: PreTrainedModel) -> list[nn.Parameter]:
    """Parameters whose values `compression_disabled` exchanges for those of the source."""
    return [parameter for parameter, _ in model.__dict__.get(KEPT_VALUES, [])]
