"""A layer that does not compute what its family's row says is found before it is replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cacheshrink_hybrid import CompressionConfig, convert_model
from cacheshrink_hybrid.conversion.self_check import check_layers
from cacheshrink_hybrid.errors import SelfCheckError
from cacheshrink_hybrid.families import FAMILIES, Family, model_spec, read_attention
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.states.kinds import compressible_layers
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.families.tiny_configs import CASES, RECURRENT_CASES, tiny_model
from tests.models import unchanged


def check(model: PreTrainedModel) -> None:
    spec = model_spec(model.config)
    check_layers(model, read_attention(model, spec), compressible_layers(spec))


@pytest.mark.parametrize("case", [*CASES, *RECURRENT_CASES])
def test_rows_that_fit_pass_and_leave_the_model_as_it_was(case: str) -> None:
    model = tiny_model(case).train()
    with unchanged(model):
        check(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["llama", "qwen3_next", "jamba"])
def test_rounding_of_half_precision_is_no_difference(case: str, dtype: torch.dtype) -> None:
    check(tiny_model(case, dtype=dtype))


UNLIKE_ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clipped": ({"model_type": "olmo", "clip_qkv": 0.5}, {"refused_options": {}}),
    "norm-after-rotation": (
        {"model_type": "hunyuan_v1_dense"},
        {"norms_follow_rotation": False},
    ),
    "norm-without-weight": ({"model_type": "nanochat"}, {"norms": None}),
    "scale-by-position": (
        {
            "model_type": "ministral3",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "llama_4_scaling_beta": 0.1,
                "mscale_all_dim": 1.0,
                "mscale": 1.0,
            },
        },
        {"query_scale": None},
    ),
    "gated-elsewhere": ({"model_type": "afmoe", "num_local_experts": 2}, {"gate": None}),
    "differential": ({"model_type": "diffllama"}, {}),
    "rotation-left-out": ({"model_type": "llama"}, {"uses_rope": lambda config, layer: False}),
    "norms-left-out": ({"model_type": "qwen3"}, {"norms": None}),
}
"""Models, and rows that one might write for them without having read their attention."""
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("name", UNLIKE_ROWS)
def test_rows_that_do_not_fit_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, row = UNLIKE_ROWS[name]
    config = AutoConfig.for_model(**{**SIZES, **values})
    known = FAMILIES.get(config.model_type, Family(model_type=config.model_type))
    monkeypatch.setitem(FAMILIES, config.model_type, replace(known, **row))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    settings = CompressionConfig(metric="none", compression_ratio=1.0)
    with unchanged(model), pytest.raises(SelfCheckError, match=r"layer 0 \(model\.layers\.0\."):
        convert_model(model, settings)
    convert_model(model, settings, self_check=False)


@pytest.mark.parametrize("case", ["bamba", "jamba", "qwen3_next", "mamba2"])
def test_mixers_are_compared_too(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them is at fault here."""

    def shifted(advanced: Callable) -> Callable:
        return lambda *args: advanced(*args).roll(1, dims=-1)

    model = tiny_model(case)
    spec = model_spec(model.config)
    layer = compressible_layers(spec)[0]
    monkeypatch.setattr(RecurrentMixer, "advanced", shifted(RecurrentMixer.advanced))
    with (
        unchanged(model),
        pytest.raises(SelfCheckError, match=rf"layer {layer.layer_idx} .*differs .* in one pass"),
    ):
        convert_model(model, CompressionConfig(metric="none", state_dtype="float16"))


def test_what_only_a_cache_shows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that forgets what it was told before is right in one pass."""

    forward = LatentAttention.forward

    def forgetful(*args: Any, cache: object = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    monkeypatch.setattr(LatentAttention, "forward", forgetful)
    with pytest.raises(SelfCheckError, match="through a cache"):
        check(tiny_model("llama"))


def test_sources_that_are_not_finite_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[3, 4] = torch.inf
    with pytest.raises(SelfCheckError, match=r"layer 1 .* not finite"):
        check(model)
