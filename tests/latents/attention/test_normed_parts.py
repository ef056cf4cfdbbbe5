"""Keys and values behind their norms: what such attention caches, and what is made of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.attention.encoded import NormedLatentAttention
from cacheshrink_hybrid.latents.attention.normed_parts import NormedParts
from cacheshrink_hybrid.latents.fit.metrics import FisherMetric
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, logits_of, random_ids
from tests.tolerances import largest_difference

CASE = "gemma4_text"
WINDOWED, SHARED = 0, 1
"""Layers of the case: keys and values of their own, and one projection for both."""


def parts_of(model: PreTrainedModel) -> list[NormedParts]:
    found = read_attention(model, model_spec(model.config))
    assert all(isinstance(part, NormedParts) for part in found)
    return found  # type: ignore[return-value]


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Summed over the text."""
    logits = model(ids).logits[0, :-1]
    return nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")


def inputs_of(model: PreTrainedModel, layer_idx: int, ids: Tensor) -> Tensor:
    """What a layer's attention gets of a text."""
    seen: list[Tensor] = []
    handle = model.model.layers[layer_idx].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    logits_of(model, ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("layer_idx", [WINDOWED, SHARED])
def test_key_value_is_what_the_source_caches(layer_idx: int) -> None:
    """At position 0, where keys are not rotated yet."""
    model = tiny_model(CASE)
    ids = random_ids(1, 1)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        part = parts_of(model)[layer_idx]
        key, value = part.key_value(inputs_of(model, layer_idx, ids), layer_idx).tensor_split(2, -1)
    for found, cached in (
        (key, cache.layers[layer_idx].keys),
        (value, cache.layers[layer_idx].values),
    ):
        torch.testing.assert_close(found[0, 0].view(part.num_key_value_heads, -1), cached[0, :, 0])


def test_keys_that_are_values_take_no_channels_of_their_own() -> None:
    """They differ by the norm's gains alone, so that half of the channels say both."""
    model = tiny_model(CASE)
    part = parts_of(model)[SHARED]
    x = torch.randn(1, 200, part.key.weight().shape[1])
    with torch.no_grad():
        moments = torch.linalg.svdvals(part.key_value(x, SHARED)[0].double())
        white = torch.linalg.matrix_rank(part.white_weight())
    assert part.width == 2 * part.key_width
    assert moments[part.key_width :].max() < 1e-5 * moments[0]
    assert moments[part.key_width - 1] > 1e-3 * moments[0]
    assert white == part.key_width


@pytest.mark.parametrize(
    ("case", "layer_idx"), [(CASE, WINDOWED), ("gemma3n_text", 1), ("gemma3n_text", 2)]
)
def test_gradients_are_of_what_is_cached(case: str, layer_idx: int) -> None:
    """A step along the gradient at the norms changes the loss as it says, of keys as of values:
    where other layers read them, by what it changes there as well."""
    model = tiny_model(case).double()
    part = parts_of(model)[layer_idx]
    ids = random_ids(1, 12)
    metric = FisherMetric(part)
    seen: list[Tensor] = []
    metric.gradients.add = seen.append  # type: ignore[method-assign]
    with metric.observing():
        loss = loss_of(model, ids)
        loss.backward()
    (gradients,) = seen
    assert gradients.shape == (12, part.width)

    def moved(step: float) -> float:
        halves = iter((step * gradients).tensor_split(2, -1))
        handles = [
            getattr(part.source, name).register_forward_hook(
                lambda module, args, output, by=by: output + by.view_as(output)
            )
            for name, by in zip(part.cached_norms, halves, strict=True)
        ]
        with torch.no_grad():
            found = loss_of(model, ids)
        for handle in handles:
            handle.remove()
        return float(found)

    size = 1e-3 / float(gradients.norm())
    slope = (moved(size) - moved(-size)) / (2 * size)
    assert slope == pytest.approx(float(gradients.square().sum()), rel=5e-3)


def test_an_input_of_zeros() -> None:
    """Of biases norms make something else than their sum."""
    part = parts_of(tiny_model(CASE))[SHARED]
    expected = part.key_value(torch.zeros(1, part.key.weight().shape[1]), SHARED)[0]
    torch.testing.assert_close(part.white_mean(), expected.detach().double())
    assert part.white_mean().abs().max() > 0.1


def test_projections_and_norms_stay_and_no_norm_is_left_for_readers() -> None:
    source = tiny_model(CASE)
    converted = converted_copy(source)
    attention = converted.model.layers[SHARED].self_attn
    assert isinstance(attention, NormedLatentAttention)
    assert attention.head.key_norm is None
    names = {name for name, _ in attention.named_children()}
    assert {"q_proj", "k_proj", "k_norm", "v_norm", "q_norm", "o_proj"} <= names
    assert {"kv_a_proj", "k_b_proj", "v_b_proj"} <= names and "v_proj" not in names
    attention.k_norm = nn.Identity()  # of weights that others put there, the head takes note
    assert attention.head.key_norm is None


def test_no_other_model_reads_its_keys_and_values() -> None:
    source = tiny_model(CASE)
    ids = random_ids(1, 5)
    assert source(ids, return_shared_kv_states=True).shared_kv_states
    with pytest.raises(NotSupportedError, match=r"return_shared_kv_states=True .* has latents"):
        converted_copy(source)(ids, return_shared_kv_states=True)


@pytest.mark.parametrize("method", ["joint", "per_head", "rotate", "rotate_joint"])
def test_exact_tokens_read_as_the_source(method: str) -> None:
    """All tokens of a text that is shorter than the exact window, whatever the rows lose."""
    source = tiny_model(CASE)
    settings = {"cache_bits": "auto", "exact_sinks": 1, "exact_window": 7}
    converted = converted_copy(source, 4.0, method, metric="activation", **settings)
    ids = random_ids(2, 7)
    with torch.no_grad():
        found = converted(ids, past_key_values=make_cache(converted)).logits
    assert largest_difference(found, logits_of(source, ids)) < 5e-3
