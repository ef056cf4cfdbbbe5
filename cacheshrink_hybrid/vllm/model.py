"""Converted models as vLLM builds them: its model of the source, with attention over latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.utils import is_pp_missing_parameter

from ..checkpoint.description import Saved
from ..checkpoint.files import shown
from ..checkpoint.model_class import model_class_of
from ..checkpoint.savable_model import savable_class
from ..errors import CheckpointError
from ..families import attention_at, family_of
from ..families.vllm import VLLM_ARCHITECTURES
from ..latents.attention.slot_rotary import SlotRotary
from ..model.latent_model import LatentModel
from ..plan import CompressionPlan
from .attention import LatentSelfAttention
from .checks import pipeline_stages, saved_model
from .rows_layer import share_blocks


class LatentForCausalLM:
    """What a converted model adds to vLLM's class of its source; comes first in its bases."""

    name_prefix = LatentModel.name_prefix

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        saved = saved_model(vllm_config)
        stages = pipeline_stages(vllm_config)
        own = stages[get_pp_group().rank_in_group]
        self.latent_layers = _install(self, vllm_config, saved, own)
        _share_blocks(self.latent_layers, vllm_config, saved.plan, own, stages)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Read the weights of a checkpoint, one tensor at a time; returns the names that were.

        Raises:
            CheckpointError: parameters of attention that are missing, or not of this model.
            KernelUnavailableError: rows that are not read where they lie.
        """
        mine = dict(self._own_parameters())
        loaded: set[str] = set()

        def others() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name.startswith(tuple(f"{layer}." for layer in self.latent_layers)):
                    _load(mine, name, tensor)
                    loaded.add(name)
                # Not all of vLLM's classes pass over layers of other processes themselves.
                elif not is_pp_missing_parameter(name, self):
                    yield name, tensor

        loaded |= super().load_weights(others())  # type: ignore[misc]
        missing = mine.keys() - loaded
        if missing:
            raise CheckpointError(
                f"the checkpoint has no {shown(missing)}, which its plan asks for; save the model "
                "again with save_mla_model"
            )
        for layer in self.latent_layers.values():
            layer.rows.check()
        return loaded

    def _own_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for prefix, layer in self.latent_layers.items():
            for name, parameter in layer.named_parameters():
                yield f"{prefix}.{name}", parameter


def _load(parameters: dict[str, torch.nn.Parameter], name: str, tensor: Tensor) -> None:
    if name not in parameters:
        raise CheckpointError(
            f"the checkpoint has a tensor {name}, which its plan does not ask for; save the model "
            "again with save_mla_model"
        )
    parameter = parameters[name]
    getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)


def _install(
    model: Any, vllm_config: Any, saved: Saved, own: range
) -> dict[str, LatentSelfAttention]:
    """Put attention over latents in the places of a model's own in the layers `own`, which vLLM
    forgets; returns the new modules by name."""
    source, family = _skeleton(saved), family_of(saved.config)
    layers = vllm_config.compilation_config.static_forward_context
    rotaries: dict[int, SlotRotary | None] = {}
    installed = {}
    for plan in saved.plan.latents:
        (layer_idx,) = plan.layer_ids
        if layer_idx not in own:
            continue
        name = family.attention_path(layer_idx)
        attention = attention_at(source, layer_idx)
        rotary = attention.head.rotary
        if id(rotary) not in rotaries:  # layers that are rotated alike share one
            rotaries[id(rotary)] = _on_device(rotary)
        parent, _, attribute = name.rpartition(".")
        installed[name] = LatentSelfAttention(attention, rotaries[id(rotary)], layer_idx, name)
        setattr(model.get_submodule(parent), attribute, installed[name])
        for other in [known for known in layers if known.startswith(f"{name}.")]:
            del layers[other]
    return installed


def _share_blocks(
    installed: dict[str, LatentSelfAttention],
    vllm_config: Any,
    plan: CompressionPlan,
    own: range,
    stages: Sequence[range],
) -> None:
    """Tell vLLM of the rows of a process, in blocks that fit those of all of them."""
    ranks = get_tensor_model_parallel_world_size()
    elsewhere = [[x.part(ranks) for x in plan.latents_of(y)] for y in stages if y != own]
    rows = [attention.rows for attention in installed.values()]
    for cached in share_blocks(rows, next(iter(installed)), elsewhere):
        vllm_config.compilation_config.static_forward_context[cached.name] = cached


def _skeleton(saved: Saved) -> Any:
    """The converted model as this package builds it, with parameters that lie nowhere."""
    model_class = savable_class(model_class_of(saved.config))
    with torch.device("meta"):
        return model_class._from_config(
            saved.config, plan=saved.plan, dtype=torch.get_default_dtype()
        )


def _on_device(rotary: SlotRotary | None) -> SlotRotary | None:
    """A rotation with angles on the device of new tensors."""
    if rotary is None:
        return None
    embedding = rotary.rotary_emb
    return SlotRotary(
        type(embedding)(embedding.config),
        rotary.apply,
        extra=rotary.extra,
        position_axes=rotary.position_axes,
        depends_on_length=rotary.depends_on_length,
    )


@cache
def _latent_class(source: str) -> Any:
    """vLLM's class of a source, computing in latents."""
    source_class = ModelRegistry.models[source].load_model_cls()
    bases = (LatentForCausalLM, source_class)
    return type(f"{LatentForCausalLM.name_prefix}{source}", bases, {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """Classes by the names under which vLLM knows them, made when they are asked for."""
    source = name.removeprefix(LatentForCausalLM.name_prefix)
    if source == name or source not in VLLM_ARCHITECTURES.values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _latent_class(source)
