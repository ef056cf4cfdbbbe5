"""What DeepSeek's format cannot say, by name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..families import attention_at, model_spec
from ..latents.attention.module import LatentAttention

LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
MLP_PARTS = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})
"""Projections of a gated MLP, apart or with both inner ones in one."""


def check_exportable(model: PreTrainedModel) -> list[LatentAttention]:
    """The attention of every layer of a model that DeepSeek's layers can compute.

    Raises:
        UnsupportedModelError: all that they cannot.
    """
    spec = model_spec(model.config)
    if not hasattr(model.base_model, "layers") or len(model.base_model.layers) != len(spec.layers):
        raise UnsupportedModelError(
            f"a {spec.model_type} model does not keep one list of layers with attention and MLP, "
            "as DeepSeek's does; serve it with this package"
        )
    layers = []
    faults = [
        f"layer {layer.layer_idx} reads the keys and values of layer {layer.reads}"
        for layer in spec.layers
        if layer.reads is not None
    ]
    for layer in spec.layers:
        if layer.reads is not None:
            continue
        if layer.attention is None or layer.mixer is not None:
            faults.append(f"layer {layer.layer_idx} has a recurrent mixer")
            continue
        attention = attention_at(model, layer.layer_idx)
        if not isinstance(attention, LatentAttention):
            faults.append(f"layer {layer.layer_idx} was kept as it is, and has no latent")
            continue
        layers.append(attention)
        faults += _faults_of_attention(attention, layer.layer_idx)
        faults += _faults_of_layer(model.base_model.layers[layer.layer_idx], layer.layer_idx)
    faults += _faults_of_model(model)
    if faults:
        listed = list(dict.fromkeys(faults))
        more = f"; and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise UnsupportedModelError(
            f"this {spec.model_type} model cannot become a DeepSeek checkpoint: "
            f"{'; '.join(listed[:5])}{more}; serve it with this package"
        )
    return layers


def _faults_of_attention(attention: LatentAttention, layer_idx: int) -> Iterator[str]:
    head, plan, at = attention.head, attention.plan, f"of layer {layer_idx}"
    if head.expansion is not None:
        yield "it caches latents of its own already (the source is such a checkpoint)"
        return
    if plan.read_mode not in ("decoupled", "absorb"):
        yield (
            f"keys {at} are rebuilt before they are rotated (convert with "
            "compression_method='decoupled_rope')"
        )
    if plan.coded:
        yield f"latents {at} are rows of few bits (convert with cache_bits=16)"
    if head.unlike_matrices(attention.kv_a_proj.weight) is not None:
        yield f"projections {at} are no plain matrices"
    if getattr(attention.q_proj, "bias", None) is not None:
        yield f"queries {at} have a bias"
    if attention.q_norm is not None or attention.k_norm is not None:
        yield f"queries or keys {at} are normalised"
    if attention.o_norm is not None:
        yield f"outputs of heads {at} are normalised"
    if attention.gated or attention.gate_proj is not None:
        yield f"heads {at} are gated"
    if head.softcap is not None:
        yield f"scores {at} have a softcap"
    if head.sinks is not None:
        yield f"logits without a value take part in the softmax {at}"
    if attention.query_scale is not None:
        yield f"queries {at} are scaled by their position"
    if attention.q_adapters is not None:
        yield f"layer {layer_idx} shares its weights, with adapters"
    reach = attention.config.max_position_embeddings
    if head.window is not None and head.window < reach:
        yield f"layer {layer_idx} has a sliding window of {head.window}"
    if head.rotary is not None and plan.read_mode == "decoupled":
        if head.rotary.depends_on_length:
            yield f"frequencies {at} depend on the length of the text"
        if head.rotary.position_axes > 1:
            yield f"positions {at} have {head.rotary.position_axes} axes"


def _faults_of_layer(layer: nn.Module, layer_idx: int) -> Iterator[str]:
    parts = {name for name, child in layer.named_children() if not isinstance(child, nn.Dropout)}
    if parts != LAYER_PARTS:
        yield f"layer {layer_idx} is made of {', '.join(sorted(parts))}"
        return
    mlp = {name for name, child in layer.mlp.named_children() if list(child.parameters())}
    if mlp not in MLP_PARTS:
        yield f"the MLP of layer {layer_idx} is made of {', '.join(sorted(mlp)) or 'nothing'}"
    elif any(name.endswith("bias") for name, _ in layer.mlp.named_parameters()):
        yield f"the MLP of layer {layer_idx} has biases"


def _faults_of_model(model: PreTrainedModel) -> Iterator[str]:
    base, config = model.base_model, model.config
    if not hasattr(config, "rms_norm_eps") or not hasattr(base, "norm"):
        yield "its norms are no RMS norms"
    elif getattr(base.norm, "bias", None) is not None:
        yield "its norms have a bias"
    if not hasattr(config, "intermediate_size") or not hasattr(config, "hidden_act"):
        yield "its config names no intermediate_size and hidden_act of a gated MLP"
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        yield "its head has a bias"
