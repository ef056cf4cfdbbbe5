"""Whether a model computes what it computed before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..model.attached_plan import is_converted, plan_of
from ..precision import as_integers

SAMPLES = 8
"""Values of each tensor that are looked at."""
SWITCHES = (
    "training",
    "compression_disabled",
    "_active_adapter",
    "_disable_adapters",
    "merged_adapters",
    "scaling",
)
"""Attributes of modules, of torch, of this package and of peft, that change what they compute."""


class ModelStamp:
    """Weights, kept buffers and switches of a model, compared with those of the last time.

    Tensors are compared by identity, place, version and some of their values, so an assignment to
    single elements of `tensor.data`, which counts no version, may stay unseen. So does what was
    changed and changed back in between.

    Args:
        model: as it is now.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._take()

    def has_changed(self) -> bool:
        """Whether the model is not what it was the last time."""
        tensors, switches = self._parts()
        same = (
            len(tensors) == len(self._tensors)
            and all(old is new for old, new in zip(self._tensors, tensors, strict=True))
            and switches == self._switches
            and _places(tensors) == self._places
            and all(map(torch.equal, self._values, self._sampled()))
        )
        if not same:
            self._take()
        return not same

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks at the copied model."""
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._take()

    def _take(self) -> None:
        self._tensors, self._switches = self._parts()
        self._places = _places(self._tensors)
        self._samples: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in self._tensors:
            if tensor.numel() and not tensor.is_meta:
                kind = (tensor.dtype, tensor.device)
                self._samples.setdefault(kind, []).append(as_integers(_some(tensor)))
        self._values = self._sampled()

    def _parts(self) -> tuple[list[Tensor], list[str]]:
        return _kept_tensors(self.model), _switches(self.model, SWITCHES)

    def _sampled(self) -> list[Tensor]:
        return [torch.cat(views) for views in self._samples.values()]


def model_digest(model: nn.Module) -> str:
    """SHA-256 of all that a model computes with: weights, kept buffers, plan and switches."""
    digest = hashlib.sha256(repr(_switches(model, SWITCHES[1:])).encode())
    if is_converted(model):
        plan = plan_of(model)
        layers = [*map(asdict, plan.latents), *map(asdict, plan.states)]
        digest.update(json.dumps(layers, sort_keys=True, default=str).encode())
    for tensor in _kept_tensors(model):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        data = as_integers(tensor.detach().cpu().contiguous())
        digest.update(data.reshape(-1).numpy().data)
    return digest.hexdigest()


def _kept_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers of all modules, without buffers that are worked out anew."""
    tensors: list[Tensor] = []
    for module in model.modules():
        tensors += [x for x in module._parameters.values() if x is not None]
        passing = module._non_persistent_buffers_set
        buffers = module._buffers.items()
        tensors += [x for name, x in buffers if x is not None and name not in passing]
    return tensors


def _switches(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Attributes of these names of all modules that have them."""
    own = (vars(module) for module in model.modules())
    return [repr(values[name]) for values in own for name in names if name in values]


def _places(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """Where tensors lie, and how often they were changed in place, which is not counted of tensors
    of inference mode."""
    return [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors]


def _some(tensor: Tensor) -> Tensor:
    """A view of some values, at equal distances."""
    held = tensor.untyped_storage().nbytes() // tensor.itemsize - tensor.storage_offset()
    flat = tensor.detach().as_strided((min(held, tensor.numel()),), (1,))
    return flat[:: -(-len(flat) // SAMPLES)]
