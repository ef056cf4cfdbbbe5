"""What cannot be converted, found out before any work."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..checkpoint.source_model import check_language_model, check_plain_weights
from ..config import DEFAULT_RATIO, CompressionConfig
from ..errors import ConfigError, NotSupportedError, PlanError, UnsupportedModelError
from ..latents.fit.head_groups import check_groups
from ..model.adapters import refuse_adapters
from ..model.attached_plan import is_converted
from ..spec import ModelSpec
from ..states.kinds import compressible_layers
from ..states.mixers.installation import unfoldable_weight
from .ratio_limit import check_reachable


def check_source(model: PreTrainedModel) -> None:
    """Raise for a model that is none to convert, whatever the settings."""
    refuse_adapters(model, "converting")
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise NotSupportedError(
            "weights of the model were made inside torch.inference_mode(), and nothing can be "
            "calibrated or trained through them; load the model outside of that context"
        )
    if is_converted(model):
        raise UnsupportedModelError("the model is converted already; convert its source instead")
    check_plain_weights(model)
    check_language_model(model)


def check_convertible(spec: ModelSpec, config: CompressionConfig) -> None:
    """Raise for what `config` cannot do to any model of this spec.

    Raises:
        ConfigError, PlanError, UnsupportedModelError: what that is.
    """
    check_something_to_do(spec, config)
    if spec.caches_latents and config.metric == "score":
        raise ConfigError(
            f"metric='score' weighs keys and values apart, and in the latents that this "
            f"{spec.model_type} model caches a channel is both; leave it out, or give 'fisher'"
        )
    if spec.cross is not None:
        _check_with_encoder(spec, config)
    for layer in spec.attention_layers:
        assert layer.attention is not None
        check_groups(layer.attention.num_key_value_heads, config.head_groups)
    check_reachable(spec, config)


def _check_with_encoder(spec: ModelSpec, config: CompressionConfig) -> None:
    """Raise for what cannot be said of a decoder that reads an encoder's output."""
    if config.metric == "score":
        raise ConfigError(
            f"metric='score' weighs keys by queries of the same vectors, and those of this "
            f"{spec.model_type} model's cross-attention are of others; leave it out, or give "
            "'fisher'"
        )
    if config.budget_bytes is not None:
        raise ConfigError(
            f"budget_bytes={config.budget_bytes} is the memory of one text, and a "
            f"{spec.model_type} decoder remembers its own tokens and an encoder's output, however "
            "long either is; give a compression_ratio, which both have"
        )


def check_material(spec: ModelSpec, config: CompressionConfig, pairs: Any) -> None:
    """Raise `ConfigError` where text alone is no calibration, or pairs are none.

    Args:
        pairs: `calibration_inputs`, if they are given.
    """
    if spec.cross is None and pairs is not None:
        raise ConfigError(
            f"calibration_inputs are pairs for an encoder and a decoder, and this "
            f"{spec.model_type} model reads one text; give calibration_texts"
        )
    if spec.cross is not None and pairs is None and config.reads_text:
        raise ConfigError(
            f"text alone is no calibration for a {spec.model_type} model, whose decoder reads an "
            "encoder's output as well; give calibration_inputs=[{...}, ...], with what the encoder "
            "reads and labels in each, or a file of pairs of texts (--calibration-pairs), or "
            "use_calibration=False (--metric none)"
        )


def check_something_to_do(spec: ModelSpec, config: CompressionConfig) -> None:
    """Raise if a model of this spec has nothing that `config` compresses."""
    if not spec.attention_layers:
        if not config.changes_states:
            raise UnsupportedModelError(
                f"this {spec.model_type} model has no attention layers, so there is no KV cache to "
                "compress; give state_ratio to compress its recurrent states"
            )
        if config.compression_ratio != DEFAULT_RATIO or config.d_latent is not None:
            raise ConfigError(
                f"compression_ratio={config.compression_ratio:g} or d_latent has no use for this "
                f"{spec.model_type} model, which has no attention layers; leave it out"
            )
    asked = config.state_ratio != 1 or config.state_dtype != "auto"
    if asked and not compressible_layers(spec):
        raise PlanError(
            f"state_ratio={config.state_ratio:g} and state_dtype={config.state_dtype!r} need "
            f"recurrent states, of which this {spec.model_type} model has none that can be "
            "compressed; leave them out"
        )


def check_mixers(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Refuse mixers whose weights could not be replaced by shorter ones."""
    for layer in compressible_layers(spec):
        assert layer.state is not None
        mixer = model.get_submodule(layer.state.module_name)
        name = unfoldable_weight(mixer, layer.state.kind)
        if name is not None:
            raise UnsupportedModelError(
                f"{layer.state.module_name}.{name} is parametrized, pruned or offloaded, so that a "
                "shorter one cannot take its place; make it an ordinary parameter that is in "
                "memory first (remove_parametrizations, prune.remove, loading without offload)"
            )
