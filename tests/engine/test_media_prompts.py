"""Prompts with images: token ids say nothing of them, so nothing is taken over by ids alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cacheshrink_hybrid.engine import LLM, PrefixCache, SamplingParams
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.families.vision import media_tokens
from tests.families.tiny_configs import tiny_model
from tests.families.vision_configs import IMAGE_TOKEN, VISION_CASES, vision_model, with_an_image
from tests.models import converted_copy, random_ids

GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
MEMORY = 8 << 20
STANDS = "stand for images"


@pytest.mark.parametrize("case", VISION_CASES)
def test_calls_with_images_go_through(case: str) -> None:
    """The second image has the first one's token ids."""
    model, given = vision_model(case), with_an_image(case)
    other = given | {"pixel_values": -given["pixel_values"]}
    due = [model.generate(**one, **GREEDY) for one in (given, other)]
    with PrefixCache(model, max_bytes=MEMORY) as prefixes:
        for one, expected in zip((given, other, given), (*due, due[0]), strict=True):
            assert torch.equal(model.generate(**one, **GREEDY), expected)
    assert prefixes.statistics.lookups == 0


@pytest.mark.parametrize("converted", [True, False])
def test_prompts_of_text_are_kept_beside_them(converted: bool) -> None:
    """Also with a mask of images that has none, as processors give it with text alone."""
    model, given = vision_model("gemma3"), with_an_image("gemma3")
    model = converted_copy(model) if converted else model
    ids = random_ids(1, 24).clamp_max(90)
    text = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}
    calls = [text, given, text, {"input_ids": ids}]
    due = [model.generate(**one, **GREEDY) for one in calls]
    with PrefixCache(model, max_bytes=MEMORY) as prefixes:
        for one, expected in zip(calls, due, strict=True):
            assert torch.equal(model.generate(**one, **GREEDY), expected)
    assert prefixes.statistics.lookups == 3
    assert prefixes.statistics.saved_tokens > 0


@pytest.mark.parametrize("case", VISION_CASES)
def test_image_tokens_are_no_words(case: str) -> None:
    model = vision_model(case)
    assert IMAGE_TOKEN in media_tokens(model.config)
    ids = with_an_image(case)["input_ids"]
    llm = LLM(model, cache_memory=MEMORY)
    with pytest.raises(ConfigError, match=STANDS):
        llm.generate([ids[0].tolist()], SamplingParams(max_tokens=2))
    assert not llm.requests
    with pytest.raises(ConfigError, match=STANDS):
        PrefixCache(model, max_bytes=MEMORY).cache_for(ids)


def test_tensors_in_any_container_go_through() -> None:
    model, ids = tiny_model("llama"), random_ids(1, 20)
    values = torch.ones(1, 20, 3)
    with PrefixCache(model, max_bytes=MEMORY) as prefixes:
        for value in (values, [values], (values,), {"a": values}, values.numpy(), ids):
            assert prefixes._goes_through(ids, {"other": value})
        for value in (None, 3, [1, 2], {}, torch.zeros_like(ids)):
            assert not prefixes._goes_through(ids, {"other": value})


def test_a_model_of_text_has_none() -> None:
    assert media_tokens(tiny_model("llama").config) == frozenset()
