"""A model set up for training, and put back afterwards as an ordinary converted model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..families.encoder_decoder import ONE_TEXT, refuse_encoder
from ..latents.attention.module import LatentAttention
from ..latents.attention.reading import ReadingAttention
from ..model.adapters import refuse_adapters
from ..model.attached_plan import refuse_head_groups
from ..model.original_model import (
    has_original_weights,
    keep_source_values,
    parameters_with_source_values,
)
from ..states.mixers.mixer import RecurrentMixer
from .bases import TrainableBases, latent_modules, state_mixers
from .frozen_shards import FrozenShards
from .metric import output_metrics
from .optimizer import NamedParameter
from .settings import TrainingConfig
from .targets import latent_layers

BASES = "training_bases"
"""Attribute of a model under training: its `TrainableBases`."""


class Attachment:
    """What trains in a model: its bases, encoders, biases, state projections and the extras.

    Everything else is frozen. Trained weights are in float32, beside others in bfloat16; a float16
    model is in float32 throughout. `release` brings the ordinary weights up to date and removes all
    traces; use it as a context manager.

    Args:
        model: a converted model.
        sequences: token ids (1, T) each, to measure the metric on.
        shard_on: the device of this process, to move the model to with what is frozen cut over all
            processes (`FrozenShards`); None to leave all weights whole where they are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: TrainingConfig,
        sequences: Iterable[Tensor],
        *,
        shard_on: torch.device | None = None,
    ) -> None:
        if hasattr(model, BASES):
            raise ConfigError("the model is being trained already; wait for the other trainer")
        refuse_adapters(model, "training")
        refuse_head_groups(model, "training")
        refuse_encoder(model.config, "training", ONE_TEXT)
        self.model = model
        self.config = config
        self.modules = latent_modules(model)
        self.mixers = state_mixers(model)
        self._training = [(module, module.training) for module in model.modules()]
        self._required = [(p, p.requires_grad) for p in model.parameters()]
        self._dtypes: list[tuple[nn.Parameter, torch.dtype]] = []
        self._use_cache = getattr(model.config, "use_cache", None)
        self._shards: FrozenShards | None = None
        try:
            self._set_up(sequences, shard_on)
        except BaseException:
            self._restore(failed=True)
            raise
        self._hook = model.register_forward_pre_hook(self._before_forward)

    def _set_up(self, sequences: Iterable[Tensor], shard_on: torch.device | None) -> None:
        for parameter, _ in self._required:
            parameter.requires_grad_(False)
            if parameter.dtype == torch.float16:  # its gradients would underflow
                self._promote(parameter)
        extras = self._extras()
        if shard_on is not None:
            whole = [*self._compressed(), *(parameter for _, parameter in extras)]
            whole += parameters_with_source_values(self.model)
            self._shards = FrozenShards(self.model, whole, shard_on)
        self.metrics = output_metrics(
            self.model,
            self.modules,
            sequences,
            metric=self.config.metric,
            seed=self.config.seed,
        )
        self.bases = TrainableBases(
            self.modules,
            self.metrics,
            self.mixers,
            damping=self.config.metric_damping,
            constrained=self.config.constrained,
        )
        if has_original_weights(self.model):  # it computes with the extras too
            keep_source_values(self.model, (parameter for _, parameter in extras))
        self.model.add_module(BASES, self.bases)
        self.parameters = self._parameters(extras)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception) -> None:
        self.release(failed=kind is not None)

    def release(self, *, failed: bool = False) -> None:
        """Make the model an ordinary converted model again, with the weights it has now.

        Args:
            failed: after an error, which other processes may know nothing of: frozen weights that
                were cut over them are lost.
        """
        if not hasattr(self.model, BASES):
            return
        self._hook.remove()
        self.bases.write_back()
        self._restore(failed)

    def _restore(self, failed: bool) -> None:
        if hasattr(self.model, BASES):
            delattr(self.model, BASES)
        if self._shards is not None:
            self._shards.release(failed=failed)
        for parameter, dtype in self._dtypes:
            parameter.data = parameter.data.to(dtype)
        for parameter, required in self._required:
            parameter.requires_grad_(required)
            parameter.grad = None
        for module, training in self._training:
            module.training = training
        if self._use_cache is not None:
            self.model.config.use_cache = self._use_cache

    def _before_forward(self, model: PreTrainedModel, _args) -> None:
        """Training passes read U from the factors, all others the weights."""
        compressed: list[Any] = [*self.modules.values(), *self.mixers.values()]
        original = any(module.compression_disabled for module in compressed)
        if original and not torch.is_grad_enabled():
            return
        if torch.is_grad_enabled():
            self.bases.shadow()
        else:
            self.bases.write_back()

    @property
    def width(self) -> int:
        """E."""
        return self.model.get_input_embeddings().weight.shape[-1]

    def metrics_by_layer(self) -> dict[int, Tensor]:
        """The metric of [k; v] of each cache layer."""
        of_module = {m.plan.layer_ids: self.metrics[name] for name, m in self.modules.items()}
        return {
            layer_idx: of_module[module.plan.layer_ids]
            for layer_idx, module in latent_layers(self.model).items()
        }

    def _compressed(self) -> Iterable[nn.Parameter]:
        """What compression introduced."""
        for module in self.modules.values():
            for name in ("kv_a_proj", "kv_a_adapters", "k_b_proj", "v_b_proj"):
                if getattr(module, name) is not None:
                    yield from getattr(module, name).parameters()
        for mixer in self.mixers.values():
            yield from (m for m in (mixer.state_write, mixer.state_read) if m is not None)

    def _parameters(self, extras: list[tuple[str, nn.Parameter]]) -> list[NamedParameter]:
        found = []
        for name, parameter in self.bases.named_parameters():
            found.append(NamedParameter(f"{BASES}.{name}", parameter, _rms(parameter)))
        named: dict[int, tuple[str, nn.Parameter, float]] = {}
        for name, module in self.modules.items():
            for suffix, parameter, size in _learned(module):
                named.setdefault(id(parameter), (f"{name}.{suffix}", parameter, size))
        for name, mixer in self.mixers.items():
            for suffix, parameter in _learned_of_state(mixer):
                item = f"{name}.{suffix}", parameter, _rms(parameter)
                named.setdefault(id(parameter), item)
        for name, parameter in extras:
            named.setdefault(id(parameter), (name, parameter, _rms(parameter)))
        for name, parameter, size in named.values():
            if parameter.dtype == torch.bfloat16:
                self._promote(parameter)
            parameter.requires_grad_(True)
            found.append(NamedParameter(name, parameter, size))
        return found

    def _promote(self, parameter: nn.Parameter) -> None:
        """To float32 until `release`."""
        self._dtypes.append((parameter, parameter.dtype))
        parameter.data = parameter.data.float()

    def _extras(self) -> list[tuple[str, nn.Parameter]]:
        places = {"queries": ("q_proj", "q_a_proj", "q_b_proj"), "outputs": ("o_proj",)}
        wanted = self.config.extras
        assert wanted is not None, "the settings are resolved"
        found = []
        if "norms" in wanted:
            for name, module in self.model.named_modules():
                if "norm" in type(module).__name__.lower() and "source_attention" not in name:
                    found += [(f"{name}.{n}", p) for n, p in module.named_parameters(recurse=False)]
        readers: dict[str, nn.Module] = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, ReadingAttention)
        }
        modules = {**self.modules, **readers}
        for extra, attributes in places.items():
            if extra not in wanted:
                continue
            for (name, module), attribute in product(modules.items(), attributes):
                projection = getattr(module, attribute, None)
                if projection is None:
                    continue
                found += [(f"{name}.{attribute}.{n}", p) for n, p in projection.named_parameters()]
        return found


def _learned(module: LatentAttention) -> Iterable[tuple[str, nn.Parameter, float]]:
    """(name, parameter, size) of a module's encoder and biases. A bias moves by shares of the
    spread of what it is added to. DeepSeek's attention has none, so decoupled keys keep zeros."""
    weight = module.kv_a_proj.weight
    yield "kv_a_proj.weight", weight, _rms(weight)
    if module.head.decouples:
        return
    if module.kv_a_proj.bias is not None:
        yield "kv_a_proj.bias", module.kv_a_proj.bias, 1.0  # channels have unit variance
    if module.kv_a_adapters is not None:
        for name, parameter in module.kv_a_adapters.named_parameters():
            yield f"kv_a_adapters.{name}", parameter, _rms(parameter)
    for name in ("k_b_proj", "v_b_proj"):
        projection = getattr(module, name)
        spread = _rms(projection.weight) * projection.weight.shape[-1] ** 0.5
        yield f"{name}.bias", projection.bias, spread


def _learned_of_state(mixer: RecurrentMixer) -> Iterable[tuple[str, nn.Parameter]]:
    """What a narrower state reads with; and what it writes with, unless that selects channels or is
    a basis on the manifold."""
    assert mixer.state_plan is not None and mixer.state_read is not None
    yield "state_read", mixer.state_read
    narrowing = mixer.state_plan.narrowing
    if narrowing is not None and narrowing.learns_write:
        assert mixer.state_write is not None
        yield "state_write", mixer.state_write


def _rms(parameter: Tensor) -> float:
    size = float(parameter.detach().float().square().mean().sqrt())
    return size if size > 0 else 1.0
