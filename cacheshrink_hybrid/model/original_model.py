"""The original that a converted model keeps inside (`store_original_weights=True`): switching back
to it, and keeping the weights that both share as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import NotSupportedError, UnsupportedModelError
from ..latents.attention.kept_source import KeepsSource
from ..latents.attention.module import LatentAttention
from ..states.mixers.mixer import RecurrentMixer

KEPT_VALUES = "source_values"
"""Attribute of a converted model that was trained: parameters its source has too, and the source's
values of them."""
SAMPLES = "source_samples"
"""Attribute of a converted model that keeps its original: of parameters that its source has too, by
name, the number of values at conversion and some of them."""
NUM_SAMPLES = 64


@contextmanager
def compression_disabled(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within this context `model` computes what its source computed, with full keys and values.

    Most weights are both the model's and its source's. `MLATrainer` keeps the source's values of
    those that it trains; a loop of your own does so by `keep_source_values(model, parameters)`
    before its first step. A cache that was filled inside must not be used outside, nor the other
    way round.

    Raises:
        UnsupportedModelError: if the model was converted without `store_original_weights=True`.
        NotSupportedError: if weights were changed without the source's values being kept, as far as
            64 values of each tell.
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
        _check_unchanged(model)
        yield model
    finally:
        for (parameter, _), data in zip(kept, trained, strict=True):
            parameter.data = data
        for module in switched:
            module.compression_disabled = False


@torch.no_grad()
def remember_source_values(model: PreTrainedModel) -> None:
    """Note some values of every weight that the source has too, to tell later whether they are
    still the source's; of those that are kept for it, the values that are kept."""
    kept = {id(parameter): first for parameter, first in model.__dict__.get(KEPT_VALUES, [])}
    model.__dict__[SAMPLES] = {
        name: (p.numel(), _sampled(kept.get(id(p), p), p.numel()).cpu())
        for name, p in _source_parameters(model)
    }


@torch.no_grad()
def _check_unchanged(model: PreTrainedModel) -> None:
    samples = model.__dict__[SAMPLES]
    changed = []
    for name, parameter in _source_parameters(model):
        if name in samples and not _agrees(samples[name], parameter):
            changed.append(name)
    if changed:
        shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise NotSupportedError(
            f"{len(changed)} weights that the model has in common with its source were changed "
            f"after the conversion ({shown}), so the source's output is gone; train with "
            "MLATrainer, or call keep_source_values(model, parameters) before training"
        )


def _source_parameters(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that the source has too, those that were kept for it included."""
    own = {
        id(parameter)
        for module in _compressed(model)
        if isinstance(module, (LatentAttention, RecurrentMixer))
        for parameter in module.own_parameters()
    }
    return ((name, p) for name, p in model.named_parameters() if id(p) not in own)


def _sampled(parameter: Tensor, count: int) -> Tensor:
    """Values at evenly spread positions among the first `count`."""
    number = min(NUM_SAMPLES, count)
    positions = torch.arange(number, device=parameter.device) * count // max(1, number)
    return parameter.detach().flatten()[positions]


def _agrees(samples: tuple[int, Tensor], parameter: nn.Parameter) -> bool:
    """Whether a parameter has these values still, maybe in a narrower precision or with more rows;
    one that is elsewhere now (offloaded, in shards) is taken to."""
    count, expected = samples
    held = parameter.untyped_storage().nbytes() // parameter.element_size()
    if parameter.is_meta or held < parameter.numel() or not held:
        return True
    if parameter.numel() < count:
        return False
    actual = _sampled(parameter, count).cpu()
    if actual.isnan().all():  # shards leave nothing but NaN where a weight is not whole
        return True
    passed = (actual.dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(actual, expected.to(dtype).to(actual.dtype)) for dtype in passed)


def has_original_weights(model: PreTrainedModel) -> bool:
    """Whether a converted model can switch back to its source (`compression_disabled`)."""
    return _keep_original(_compressed(model))


def _compressed(model: nn.Module) -> list[KeepsSource | RecurrentMixer]:
    kinds = (KeepsSource, RecurrentMixer)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _keep_original(modules: Sequence[KeepsSource | RecurrentMixer]) -> bool:
    return bool(modules) and not any(
        module.source_attention is None
        if isinstance(module, KeepsSource)
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
