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

from .adapters import AdapterSettings
from .cache import LatentCache, make_cache
from .cache.hf_cache import num_cached_tokens
from .cache_argument import CACHE_ARGUMENTS, given_cache
from .calibrate.states import mixer_modules
from .derived_class import Derived, derived_class
from .errors import NotSupportedError, PlanError, UnsupportedModelError
from .factorize import LatentFactors
from .factorize.state_plan import StateFactors
from .families import attention_at, model_spec, read_attention, replace_attention
from .kernels.backend import Backend, check_backend
from .modules.attention_parts import AttentionParts
from .modules.latent_attention import LatentAttention
from .modules.left_padding import check_padding
from .modules.recurrent_mixer import RecurrentMixer, install_mixer
from .modules.slot_rotary import check_positions
from .plan import CompressionPlan, LatentPlan, StatePlan
from .spec import ModelSpec

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
                _install(self, parts, latent_plan)
        _install_states(self, spec, plan.states)
        _share_bases(self, plan)
        _prepare_forward(self)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs,
    ) -> str | None:
        from .checkpoint import save_model

        kwargs |= {"is_main_process": is_main_process, "state_dict": state_dict}
        return save_model(self, save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        from .checkpoint import push_model

        return push_model(self, repo_id, **kwargs)

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs):
        from .checkpoint import load_model

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
        module = _install(model, part, latent_plan, keep_source=keep_source)
        write_factors(module, part, factor)
    _install_states(
        model, model_spec(model.config), plan.states, state_factors, keep_source=keep_source
    )
    _share_bases(model, plan)
    setattr(model, PLAN_ATTRIBUTE, plan)
    source_class: Any = type(model)
    model.__class__ = latent_model_class(source_class)
    model.source_name = str(model.name_or_path)
    for stale in ("_compiled_call", "_last_compile_config"):
        model.__dict__.pop(stale, None)
    _prepare_forward(model)


@torch.no_grad()
def _install_states(
    model: PreTrainedModel,
    spec: ModelSpec,
    plans: Sequence[StatePlan],
    factors: Sequence[StateFactors | None] | None = None,
    *,
    keep_source: bool = False,
) -> None:
    modules = mixer_modules(model, spec)
    for i, plan in enumerate(plans):
        pair = None if factors is None else factors[i]
        mixer = install_mixer(
            modules[plan.layer_idx],
            plan.kind,
            plan,
            None if pair is None else pair.read,
            keep_source=keep_source,
        )
        if pair is not None:
            for matrix, value in ((mixer.state_write, pair.write), (mixer.state_read, pair.read)):
                if matrix is not None:  # the others are folded into the mixer's weights
                    matrix.copy_(value)
    recurrent = [layer for layer in spec.state_layers if layer.state and layer.state.state_size]
    if plans and len(plans) == len(recurrent) and spec.attention_layers:
        # States of our mixers can be taken back token by token, so assisted decoding is exact.
        # Without attention, transformers' assisted decoding does not find the cache at all.
        model._is_stateful = False


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


def freeze_what_is_fixed(model: nn.Module) -> None:
    """Parameters that no training changes are so in a new model; transformers' loader lets all that
    it loads train, and torch multiplies by those in another order."""
    for module in model.modules():
        fixed: tuple[nn.Parameter | None, ...] = ()
        if isinstance(module, LatentAttention):
            fixed = (module.latent_reach,)
        elif isinstance(module, RecurrentMixer):
            fixed = (module.state_write, module.state_read)
        for parameter in fixed:
            if parameter is not None:
                parameter.requires_grad_(False)


def _mixers(model: nn.Module) -> list[RecurrentMixer]:
    return [module for module in model.modules() if isinstance(module, RecurrentMixer)]


def _install(
    model: PreTrainedModel,
    parts: AttentionParts,
    plan: LatentPlan,
    *,
    keep_source: bool = False,
) -> LatentAttention:
    # A subclass of the family's attention as well: transformers finds the modules whose attention
    # weights it records by isinstance.
    source_class: Any = type(parts.source)
    cls = derived_class(LatentAttention, source_class)
    module = replace_attention(
        model, parts.layer_ids, lambda: cls(parts, plan, keep_source=keep_source)
    )
    module.freeze_as(parts)
    # Hooks that record attention weights, or place modules on devices, stay where they were.
    for layer_idx, source in parts.sources.items():
        place = attention_at(model, layer_idx)
        for name in vars(source):
            if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
                getattr(place, name).update(getattr(source, name))
    return module


@torch.no_grad()
def write_factors(module: LatentAttention, parts: AttentionParts, factors: LatentFactors) -> None:
    """Fold encoder, bases and mean into the module's three new projections.

    kv_a_proj = E W with bias E (b - mean); k_b_proj and v_b_proj are the bases with the means as
    biases, keys times their multiplier.
    """
    encoder, width = factors.encoder, parts.kv_width
    weight = _float64(torch.cat([parts.key.weight(), parts.value.weight()]))
    bias = -factors.mean.clone()
    for half, projection in enumerate((parts.key, parts.value)):
        if projection.bias() is not None:
            bias[half * width : (half + 1) * width] += _float64(projection.bias())
    if module.latent_reach is not None:
        assert factors.reach is not None
        module.latent_reach.copy_(factors.reach)
    module.kv_a_proj.weight.copy_(encoder @ weight)
    module.kv_a_proj.bias.copy_(encoder @ bias)
    module.k_b_proj.weight.copy_(_key_weight(factors) * parts.key_multiplier)
    module.k_b_proj.bias.copy_(factors.mean[:width] * parts.key_multiplier)
    module.v_b_proj.weight.copy_(factors.value_up)
    module.v_b_proj.bias.copy_(factors.mean[width:])
    for layer_idx, (_, key, value) in parts.adapters.items():
        assert module.kv_a_adapters is not None
        down, up = module.kv_a_adapters[str(layer_idx)]
        down.weight.copy_(torch.cat([key[0].weight, value[0].weight]))
        ups = torch.block_diag(_float64(key[1].weight), _float64(value[1].weight))
        up.weight.copy_(encoder @ ups)


def _key_weight(factors: LatentFactors) -> Tensor:
    """`key_up` in the shape of the module's key projection: (J*D, Rk), or (J, D, Rk / J)."""
    if factors.key_heads is None:
        return factors.key_up
    by_head = factors.key_up.unflatten(0, (factors.num_key_heads, -1))  # (J, D, Rk)
    return torch.stack([up[:, factors.key_heads == head] for head, up in enumerate(by_head)])


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _share_bases(model: PreTrainedModel, plan: CompressionPlan) -> None:
    """Let the modules of one basis group use one parameter for their bases, and tell the loader
    of transformers which names are one parameter."""
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    names: dict[tuple[int, ...], list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LatentAttention):
            names.setdefault(module.plan.layer_ids, []).append(name)
    owners: dict[int, str] = {}
    for latent in plan.latents:
        if latent.basis_group is None:
            continue
        for name in names[latent.layer_ids]:
            owner = owners.setdefault(latent.basis_group, name)
            if owner == name:
                continue
            for projection in ("k_b_proj", "v_b_proj"):
                shared = model.get_submodule(f"{owner}.{projection}")
                model.get_submodule(f"{name}.{projection}").weight = shared.weight
                tied[f"{name}.{projection}.weight"] = f"{owner}.{projection}.weight"
    model.all_tied_weights_keys = tied


def _prepare_forward(model: PreTrainedModel) -> None:
    """Check the rows of every call, on the inner model, which all of them go through."""
    inner = model.base_model
    names = list(inspect.signature(inner.forward).parameters)
    rotates = any(
        module.rotary for module in inner.modules() if isinstance(module, LatentAttention)
    )
    if rotates or model_spec(model.config).state_layers:
        check = partial(_check_call, names, rotates)
        inner.register_forward_pre_hook(check, with_kwargs=True)


def _check_call(
    names: list[str], rotates: bool, inner: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> None:
    if torch.compiler.is_compiling():
        return
    given = dict(zip(names, args, strict=False)) | kwargs
    cache = given_cache(given)
    if cache is None or getattr(cache, "slots_are_positions", False):
        return  # sequences of different lengths, which only the cache knows
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
