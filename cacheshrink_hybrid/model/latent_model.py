"""Putting latent attention into a model, and the class that such a model has.

A converted model keeps its config and its behaviour; its class becomes a subclass of the source's,
`LatentLlamaForCausalLM` of `LlamaForCausalLM`, which knows how to build itself around a plan, to
make its cache, and to save and load itself. The plan is the model's; a config may be shared by
several models, converted or not.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..cache_argument import CACHE_ARGUMENTS, given_cache
from ..caches import HybridCache, LatentCache, make_cache
from ..caches.dense_cache import num_cached_tokens
from ..checkpoint.model_names import lasting_name
from ..derived_class import Derived, derived_class
from ..errors import NotSupportedError, PlanError, UnsupportedModelError
from ..families import model_spec, read_attention
from ..kernels.backend import Backend, check_backend
from ..latents.attention.left_padding import check_padding
from ..latents.attention.module import LatentAttention
from ..latents.attention.parts import AttentionParts
from ..latents.attention.slot_rotary import check_positions
from ..latents.fit.bases import LatentFactors
from ..plan import CompressionPlan
from ..pool.memory import RowMemory
from ..spec import ModelSpec
from ..states.fit.observe import mixer_modules
from ..states.fit.planner import StateFactors
from ..states.layer import StateCacheMixin
from ..states.mixers.mixer import RecurrentMixer
from ..states.plan import StatePlan
from .adapters import AdapterSettings
from .installation import install_attention, install_states, share_bases, write_factors

PLAN_ATTRIBUTE = "cacheshrink_plan"
"""Attribute of a converted model: its plan."""


def plan_of(model: PreTrainedModel) -> CompressionPlan:
    """The plan of a converted model.

    Raises:
        UnsupportedModelError: if the model was not converted.
    """
    plan = getattr(model, PLAN_ATTRIBUTE, None)
    if plan is None:
        raise UnsupportedModelError(
            f"this {type(model).__name__} is not converted; run convert_to_mla or load_mla_model"
        )
    return plan


def is_converted(model: PreTrainedModel) -> bool:
    return getattr(model, PLAN_ATTRIBUTE, None) is not None


class LatentModel(Derived, PreTrainedModel):
    """A causal language model whose attention caches latents, or whose states are narrower.

    What a converted model adds to its source class; comes first in the class's bases.
    """

    name_prefix = "Latent"
    source_name: str = ""
    """Name or path of the model that was converted."""

    @property
    def kernel_backend(self) -> Backend:
        """What decodes from the caches that `generate()` and `make_cache` make: `auto` (Triton
        kernels on a CUDA device), `triton` or `torch`, see `HybridCache`. To be assigned; not
        saved."""
        return self.__dict__.get("_kernel_backend", "auto")

    @kernel_backend.setter
    def kernel_backend(self, backend: Backend) -> None:
        self.__dict__["_kernel_backend"] = check_backend(backend)

    peft_config = AdapterSettings()

    def __init__(self, config, *args, plan: CompressionPlan | None = None, **kwargs) -> None:
        """
        Args:
            config: the source model's.
            plan: what every layer stores.
        """
        if plan is None:
            raise UnsupportedModelError(
                f"a {type(self).__name__} is built around a plan, which a config does not have; "
                "give plan=plan_of(model), or load a checkpoint with from_pretrained"
            )
        super().__init__(config, *args, **kwargs)
        setattr(self, PLAN_ATTRIBUTE, plan)
        spec = model_spec(config)
        for parts in read_attention(self, spec):
            latent_plan = next((p for p in plan.latents if p.layer_ids == parts.layer_ids), None)
            if latent_plan is not None:
                install_attention(self, parts, latent_plan)
        install_states(self, spec, plan.states)
        share_bases(self, plan)
        _prepare_forward(self)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs,
    ) -> str | None:
        from ..checkpoint.checkpoint import save_model

        kwargs |= {"is_main_process": is_main_process, "state_dict": state_dict}
        return save_model(self, save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        from ..checkpoint.checkpoint import push_model

        return push_model(self, repo_id, **kwargs)

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs):
        from ..checkpoint.checkpoint import load_model

        return load_model(path, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        given = {name for name in CACHE_ARGUMENTS if model_kwargs.get(name) is not None}
        wish = generation_config.cache_implementation
        _check_cache_wish(self, wish)
        # Candidates of a look-up may end behind the last token that is asked for, and transformers
        # makes static buffers without slots for them.
        max_cache_length += generation_config.prompt_lookup_num_tokens or 0
        result = super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        for name in CACHE_ARGUMENTS:
            # Dynamic caches that generate() just made; a static one holds latents as it is.
            if name not in given and type(model_kwargs.get(name)) is DynamicCache:
                model_kwargs[name] = make_cache(self) if wish is None else _dense_cache(self, wish)
                if generation_config.is_assistant:
                    model_kwargs[name].activate_past_recording()
            if isinstance(model_kwargs.get(name), Cache):
                # Before anybody asks the cache whether it can be compiled or cropped.
                for mixer in _mixers(self):
                    mixer.take_over(model_kwargs[name])
        return result

    def init_continuous_batching(self, *args, **kwargs):
        """Refused: transformers' paged cache, which this would make, has no rows of latents."""
        raise NotSupportedError(
            "transformers' continuous batching (generate_batch, serve) keeps plain keys and values "
            f"in a cache of its own, which a converted {type(self).__name__} does not have; serve "
            "many requests at once with cacheshrink_hybrid.engine.LLM"
        )

    def _get_static_cache_init_shape(self):
        """Latents differ in width by layer, so static buffers are made at their first use."""
        return None


def _check_cache_wish(model: PreTrainedModel, wish: str | None) -> None:
    """Refuse a `cache_implementation` that a converted model does not work with."""
    if wish == "quantized" and plan_of(model).latents:
        raise NotSupportedError(
            "cache_implementation='quantized' would code latents a second time; convert with fewer "
            "bits (cache_bits, compression_ratio), and leave cache_implementation out"
        )
    if wish == "offloaded" and model.device.type == "cpu":
        raise NotSupportedError(
            "cache_implementation='offloaded' moves what an accelerator remembers to the CPU, and "
            "this model runs on the CPU; leave it out"
        )


def _dense_cache(model: PreTrainedModel, wish: str) -> LatentCache:
    """The cache of transformers that `cache_implementation` asks for, "dynamic" or "offloaded"."""
    config = model.config.get_text_config(decoder=True)
    return LatentCache(config=config, offloading=wish == "offloaded")


@cache
def latent_model_class(source_class: Any) -> Any:
    """`source_class` as a converted model."""
    cls = derived_class(LatentModel, source_class)
    # By class name, transformers looks up here which models are causal: pipelines, and Trainer,
    # which shifts labels for them. No config has this type, so nothing else finds the entry.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[f"{cls.__module__}.{cls.__name__}"] = cls.__name__
    return cls


def source_class_of(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class that a converted model had before."""
    assert isinstance(model, LatentModel)
    return model.made_of[1]


def convert_in_place(
    model: PreTrainedModel,
    parts: list[AttentionParts],
    factors: list[LatentFactors],
    plan: CompressionPlan,
    *,
    keep_source: bool,
    state_factors: Sequence[StateFactors | None] = (),
) -> None:
    """Replace the attention modules of `model` by latent ones with these factors, and its recurrent
    mixers by compressed ones.

    Args:
        parts, factors: one per entry of `plan.latents`, in the same order.
        keep_source: keep each source module or weight that is replaced, for `compression_disabled`.
        state_factors: one per entry of `plan.states`; None at full width.
    """
    for part, factor, latent_plan in zip(parts, factors, plan.latents, strict=True):
        module = install_attention(model, part, latent_plan, keep_source=keep_source)
        write_factors(module, part, factor)
    install_states(
        model, model_spec(model.config), plan.states, state_factors, keep_source=keep_source
    )
    share_bases(model, plan)
    setattr(model, PLAN_ATTRIBUTE, plan)
    source_class: Any = type(model)
    model.__class__ = latent_model_class(source_class)
    model.source_name = lasting_name(str(model.name_or_path))
    for stale in ("_compiled_call", "_last_compile_config"):
        model.__dict__.pop(stale, None)
    _prepare_forward(model)


def set_state_plans(model: PreTrainedModel, plans: Sequence[StatePlan]) -> None:
    """Let a converted model store its states in other codes or with another replay length; its
    caches are made anew. Ranks and channels are those of its weights and stay."""
    plan = plan_of(model)
    for old, new in zip(plan.states, plans, strict=True):
        if (old.layer_idx, old.ranks, old.channels) != (new.layer_idx, new.ranks, new.channels):
            raise PlanError(
                f"layer {old.layer_idx} has ranks {old.ranks} and layer {new.layer_idx} is to have "
                f"{new.ranks}; only codes and replay lengths can change after a conversion"
            )
    modules = mixer_modules(model, model_spec(model.config))
    for new in plans:
        mixer = modules[new.layer_idx]
        assert isinstance(mixer, RecurrentMixer)
        mixer.use_plan(new)
    setattr(model, PLAN_ATTRIBUTE, replace(plan, states=tuple(plans)))


def _mixers(model: nn.Module) -> list[RecurrentMixer]:
    return [module for module in model.modules() if isinstance(module, RecurrentMixer)]


def _prepare_forward(model: PreTrainedModel) -> None:
    """Check the rows of every call, on the inner model, which all of them go through, and tell
    caches what is stored."""
    inner = model.base_model
    names = list(inspect.signature(inner.forward).parameters)
    rotates = any(
        module.rotary for module in inner.modules() if isinstance(module, LatentAttention)
    )
    inner.register_forward_pre_hook(partial(_plan_cache, names), with_kwargs=True)
    if rotates or model_spec(model.config).state_layers:
        own_states = frozenset(state.layer_idx for state in plan_of(model).states)
        check = partial(_check_call, names, rotates, own_states)
        inner.register_forward_pre_hook(check, with_kwargs=True)


def _plan_cache(names: list[str], inner: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Tell a pooled cache what the model stores, if it was made of a config alone, or for another
    mode of the model."""
    if torch.compiler.is_compiling():
        return
    cache = given_cache(dict(zip(names, args, strict=False)) | kwargs)
    if isinstance(cache, HybridCache):
        cache.plan_for(inner)


def _check_call(
    names: list[str],
    rotates: bool,
    own_states: frozenset[int],
    inner: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
) -> None:
    if torch.compiler.is_compiling():
        return
    given = dict(zip(names, args, strict=False)) | kwargs
    cache = given_cache(given)
    if cache is None or (isinstance(cache, RowMemory) and cache.slots_are_positions):
        return  # sequences of different lengths, which only the cache knows
    for layer_idx, layer in enumerate(cache.layers):
        if isinstance(layer, StateCacheMixin) and layer_idx not in own_states:
            raise NotSupportedError(
                f"layer {layer_idx} of this cache holds states in codes of another model, and the "
                "layer of this one is not converted; give each model a cache of its own"
            )
    past = num_cached_tokens(cache)
    if not isinstance(past, int) or past == 0:
        return  # a static cache counts on the device; looking would stall it
    mask = given.get("attention_mask")
    check_padding(mask)
    if rotates:
        check_positions(given.get("position_ids"), mask, past)


def spec_of(model: PreTrainedModel) -> ModelSpec:
    """The spec of a model, converted or not."""
    return model_spec(model.config)
