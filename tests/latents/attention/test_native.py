"""Latents of latents: what stays of the source, what is stored, and who may read it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from cacheshrink_hybrid import CompressionConfig, convert_model, plan_of
from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.errors import (
    ConfigError,
    KernelUnavailableError,
    UnsupportedModelError,
)
from cacheshrink_hybrid.export.deepseek import export_deepseek
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.attention.native import NativeLatentAttention
from cacheshrink_hybrid.latents.attention.native_parts import NativeParts
from tests.families.tiny_configs import tiny_config, tiny_model
from tests.models import calibration_ids, converted_copy, logits_in_pieces, logits_of, random_ids
from tests.tolerances import assert_same_logits

CASE = "deepseek_v3"
METHODS = ("joint", "separate", "per_head", "rotate", "rotate_joint")


def parts_of(case: str = CASE) -> list[NativeParts]:
    model = tiny_model(case)
    found = read_attention(model, model_spec(model.config))
    assert all(isinstance(part, NativeParts) for part in found)
    return found  # type: ignore[return-value]


def test_the_denominator_is_what_the_source_caches() -> None:
    config = tiny_config(CASE)
    spec = model_spec(config)
    cached = 2 * (config.kv_lora_rank + config.qk_rope_head_dim)
    head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    assert spec.bytes_per_token == config.num_hidden_layers * cached
    assert spec.expanded_bytes_per_token == config.num_hidden_layers * 2 * 4 * head
    converted = converted_copy(tiny_model(CASE), 2.0)
    assert f"heads would take {spec.expanded_bytes_per_token}" in plan_of(converted).table(spec)


@pytest.mark.parametrize("case", [CASE, "deepseek_v2"])
def test_what_is_encoded_is_what_the_source_caches(case: str) -> None:
    """The latent after its norm, and the rotary key: at position 0, where it is not rotated yet."""
    model = tiny_model(case)
    seen: list[torch.Tensor] = []
    attention = model.model.layers[1].self_attn
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        output = model(random_ids(1, 1), use_cache=True)
    handle.remove()
    cache = getattr(output, "cache", None) or output.past_key_values
    part = parts_of(case)[1]
    y = part.key_value(seen[0], 1)[0, 0]
    latent, rotary = (x[0, 0, 0] for x in (cache.layers[1].keys, cache.layers[1].values))
    assert_same_logits(y[part.key_width :], latent)
    scale = rotary.norm() / y[: part.key_width].norm()  # cos and sin may be longer than one
    order = rotary if case == CASE else rotary.view(-1, 2).T.flatten()
    assert_same_logits(y[: part.key_width] * scale, order)


def test_the_source_keeps_its_projections() -> None:
    source = tiny_model(CASE)
    converted = copy.deepcopy(source)
    config = CompressionConfig(compression_ratio=2.0, compression_method="joint")
    convert_model(converted, config, calibration_ids())
    module = converted.model.layers[0].self_attn
    assert isinstance(module, NativeLatentAttention)
    assert isinstance(module, type(source.model.layers[0].self_attn))
    kept, made = dict(source.named_parameters()), dict(converted.named_parameters())
    assert all(torch.equal(made[name], kept[name]) for name in kept)
    own = {name.partition("self_attn.")[2] for name in set(made) - set(kept)}
    assert {name.partition(".")[0] for name in own} == {
        "kv_a_proj",
        "k_b_proj",
        "v_b_proj",
        "latent_costs",
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_latent_is_exact_at_full_rank(method: str) -> None:
    source = tiny_model(CASE)
    converted = converted_copy(source, method=method)
    ids = random_ids(2, 21)
    due = logits_of(source, ids)
    assert_same_logits(logits_of(converted, ids), due)
    assert_same_logits(logits_in_pieces(converted, ids, [10, *[1] * 5, 6]), due)


def test_a_lost_scale_is_seen() -> None:
    """That identity at full rank would find a wrong factor of queries."""
    source = tiny_model(CASE)
    converted = converted_copy(source)
    for layer in converted.model.layers:
        module = layer.self_attn
        module._head = replace(module.head, scale=module.config.head_dim**-0.5)
    ids = random_ids(2, 21)
    assert (logits_of(converted, ids) - logits_of(source, ids)).abs().max() > 1e-2


def test_another_expansion_takes_the_place_of_the_one_before() -> None:
    converted = converted_copy(tiny_model(CASE))
    module = converted.model.layers[0].self_attn
    before = module.head
    module.kv_b_proj = copy.deepcopy(module.kv_b_proj)
    assert module.head is not before
    assert module.head.expansion.up.projection is module.kv_b_proj


def test_adapters_of_the_expansion_are_absorbed() -> None:
    """A few queries absorb what stands in the place of kv_b_proj, and many call it."""
    converted = converted_copy(tiny_model(CASE))

    class Doubled(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.in_features, self.out_features = (
                base,
                base.in_features,
                base.out_features,
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.base(x) + 0.5

    plain = logits_of(converted, random_ids(1, 12))
    for layer in converted.model.layers:
        layer.self_attn.kv_b_proj = Doubled(layer.self_attn.kv_b_proj)
    ids = random_ids(1, 12)
    due = logits_of(converted, ids)
    assert (due - plain).abs().max() > 1e-2
    assert_same_logits(logits_in_pieces(converted, ids, [1] * 12), due)


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_kernels_refuse_by_name(backend: str) -> None:
    converted = converted_copy(tiny_model(CASE), 2.0, cache_bits="auto")
    cache = make_cache(converted, backend=backend)
    with pytest.raises(KernelUnavailableError, match=r"values are keys as well|not available"):
        converted(random_ids(1, 5), cache=cache, use_cache=True)


def test_settings_that_have_no_meaning_are_refused() -> None:
    model = tiny_model(CASE)
    with pytest.raises(UnsupportedModelError, match=r"has one rotary key for all heads already"):
        convert_model(
            model, CompressionConfig(compression_method="decoupled_rope"), calibration_ids()
        )
    with pytest.raises(ConfigError, match=r"metric='score' weighs keys and values apart"):
        convert_model(model, CompressionConfig(metric="score"), calibration_ids())


def test_it_is_no_source_of_an_export(tmp_path) -> None:
    converted = converted_copy(tiny_model(CASE))
    with pytest.raises(UnsupportedModelError, match=r"caches latents of its own already"):
        export_deepseek(converted, tmp_path / "out")


def test_white_statistics_have_the_size_of_what_is_cached() -> None:
    """Without text the norm is taken as a constant: right on average for white inputs."""
    torch.manual_seed(0)
    part = parts_of()[0]
    x = torch.randn(4096, part.key.weight().shape[1])
    with torch.no_grad():
        y = part.key_value(x, 0) - part.white_mean().float()
    due = part.white_weight().square().sum(1)
    latent = slice(part.key_width, None)
    ratio = y.square().mean(0)[latent].sum() / due[latent].sum()
    assert float(ratio) == pytest.approx(1.0, rel=0.35)
    torch.testing.assert_close(
        y.square().mean(0)[: part.key_width], due[: part.key_width], rtol=0.2, atol=0.0
    )
