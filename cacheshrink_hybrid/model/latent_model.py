"""What a converted model is: its source's class, built around a plan, with caches of its own."""

from __future__ import annotations

from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel

from ..cache_argument import CACHE_ARGUMENTS
from ..caches import LatentCache, make_cache
from ..caches.encoder_decoder import dense_pair
from ..derived_class import Derived
from ..errors import NotSupportedError, UnsupportedModelError
from ..families import decoder_config, has_encoder, model_spec, read_attention, read_cross_attention
from ..kernels.backend import Backend, check_backend
from ..plan import CompressionPlan
from ..states.mixers.installation import take_over_layers
from .adapters import AdapterSettings
from .attached_plan import PLAN_ATTRIBUTE, plan_of
from .call_checks import check_calls
from .installation import install_attention, install_states, make_attention, share_bases


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
        kernels on a CUDA device, functions compiled by numba on a CPU), `triton`, `cpu` or `torch`,
        see `HybridCache`. To be assigned; not
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
        cross = () if plan.cross is None else plan.cross.latents
        for found, latents in (
            (read_attention(self, spec), plan.latents),
            (read_cross_attention(self, spec), cross),
        ):
            for parts in found:
                latent_plan = next((p for p in latents if p.layer_ids == parts.layer_ids), None)
                if latent_plan is not None:
                    install_attention(self, parts, make_attention(parts, latent_plan))
        install_states(self, spec, plan.states)
        share_bases(self, plan)
        check_calls(self)

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
            if name not in given and _is_plain(model_kwargs.get(name)):
                model_kwargs[name] = make_cache(self) if wish is None else _dense_cache(self, wish)
                if generation_config.is_assistant:
                    model_kwargs[name].activate_past_recording()
            if isinstance(model_kwargs.get(name), Cache) and not has_encoder(self.config):
                # Before anybody asks the cache whether it can be compiled or cropped.
                take_over_layers(self, model_kwargs[name])
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


def _is_plain(cache: object) -> bool:
    """Whether a cache is transformers' own that grows with the tokens, or a pair of these."""
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    return type(cache) is DynamicCache


def _check_cache_wish(model: PreTrainedModel, wish: str | None) -> None:
    """Refuse a `cache_implementation` that a converted model does not work with."""
    if wish == "quantized" and plan_of(model).latents:
        raise NotSupportedError(
            "cache_implementation='quantized' would code latents a second time; convert with fewer "
            "bits (cache_bits, compression_ratio), and leave cache_implementation out"
        )
    if wish is not None and "static" in wish and has_encoder(model.config):
        raise NotSupportedError(
            f"cache_implementation={wish!r} makes slots for an encoder's output before its latents "
            "are known, and those of a converted model differ in width by layer; leave it out"
        )
    if wish is not None and wish.startswith("offloaded") and model.device.type == "cpu":
        raise NotSupportedError(
            f"cache_implementation={wish!r} moves what an accelerator remembers to the CPU, and "
            "this model runs on the CPU; leave it out"
        )


def _dense_cache(model: PreTrainedModel, wish: str) -> Cache:
    """The cache of transformers that `cache_implementation` asks for, "dynamic" or "offloaded"."""
    config = decoder_config(model.config)
    offloading = wish == "offloaded"
    if has_encoder(config):
        return dense_pair(config, offloading=offloading)
    return LatentCache(config=config, offloading=offloading)


def source_class_of(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class that a converted model had before."""
    assert isinstance(model, LatentModel)
    return model.made_of[1]
