"""Vision-language models, whose text model is converted inside the whole, remember images too."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel

from cacheshrink_hybrid import (
    CompressionConfig,
    convert_model,
    convert_to_mla,
    load_mla_model,
    make_cache,
    save_mla_model,
)
from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.families.vision import TEXT_MODELS
from tests.families.tiny_configs import tiny_config
from tests.families.vision_configs import (
    IMAGE_TOKEN,
    VISION_CASES,
    vision_model,
    vision_model_with,
    with_an_image,
)
from tests.models import calibration_ids, converted_copy, random_ids
from tests.texts import TEXTS, word_tokenizer
from tests.tolerances import assert_same_logits, largest_difference

GREEDY = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
CODE_EDGE = 5e-3

every_case = pytest.mark.parametrize("case", VISION_CASES)


@cache
def full_rank(case: str) -> PreTrainedModel:
    return converted_copy(vision_model(case))


@cache
def coded(case: str) -> PreTrainedModel:
    """Few-bit rows beside those of the last few tokens, which stay exact."""
    model = vision_model.__wrapped__(case)
    exact = {"exact_sinks": 0, "exact_window": 4}
    config = CompressionConfig(compression_ratio=4.0, metric="activation", **exact)
    convert_model(model, config, calibration_ids())
    return model


def test_every_type_has_a_case() -> None:
    assert {*VISION_CASES} == {*TEXT_MODELS} & {*CONFIG_MAPPING}


@every_case
def test_an_image_is_remembered(case: str) -> None:
    source, converted = vision_model(case), full_rank(case)
    given = with_an_image(case)
    expected, actual = (
        m.generate(**given, max_new_tokens=8, **GREEDY) for m in (source, converted)
    )
    assert torch.equal(actual.sequences, expected.sequences)
    assert_same_logits(torch.stack(actual.logits), torch.stack(expected.logits))
    other = given | {"pixel_values": -given["pixel_values"]}
    unlike = converted.generate(**other, max_new_tokens=8, **GREEDY)
    assert largest_difference(unlike.logits[-1], actual.logits[-1]) > 1e-3


@every_case
def test_left_padding(case: str) -> None:
    """Of an image beside a longer text."""
    source, converted = vision_model(case), full_rank(case)
    given = with_an_image(case)
    length = given["input_ids"].shape[1]
    text = random_ids(1, length + 4, seed=2).clamp_max(90)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in given:
            padded = torch.nn.functional.pad(given[name], (4, 0))
            beside = {"input_ids": text, "attention_mask": torch.ones_like(text)}
            given[name] = torch.cat([padded, beside.get(name, torch.zeros_like(text))])
    expected, actual = (
        m.generate(**given, max_new_tokens=6, **GREEDY) for m in (source, converted)
    )
    assert torch.equal(actual.sequences, expected.sequences)
    assert_same_logits(torch.stack(actual.logits), torch.stack(expected.logits))


def next_logits(model: PreTrainedModel, given: dict[str, Any], more: Tensor) -> Tensor:
    """Logits of tokens that follow an image, one by one on top of a cache."""
    cache = make_cache(model)
    keep = {"use_cache": True, cache_argument(model.forward): cache}
    with torch.no_grad():
        model(**given, **keep)
        mask, found = given["attention_mask"], []
        for token in more.split(1, dim=1):
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            found.append(model(input_ids=token, attention_mask=mask, **keep).logits)
    return torch.cat(found, dim=1)


@every_case
def test_coded_decoding_agrees_with_one_pass(case: str) -> None:
    model, given = coded(case), with_an_image(case)
    more = random_ids(1, 7, seed=3).clamp_max(90)
    whole = dict(given)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in given:
            new = {"input_ids": more, "attention_mask": torch.ones_like(more)}
            whole[name] = torch.cat([given[name], new.get(name, torch.zeros_like(more))], dim=1)
    with torch.no_grad():
        due = model(**whole, use_cache=False).logits[:, -more.shape[1] :]
    assert largest_difference(next_logits(model, given, more), due) < CODE_EDGE


@every_case
def test_a_saved_model_reads_images_and_serves_text(case: str, tmp_path: Path) -> None:
    model, given = coded(case), with_an_image(case)
    save_mla_model(model, None, tmp_path)
    loaded, _ = load_mla_model(tmp_path)
    assert type(loaded) is type(model)
    expected, actual = (m.generate(**given, max_new_tokens=6, **GREEDY) for m in (model, loaded))
    assert torch.equal(actual.sequences, expected.sequences)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), type(model.config))
    ids = random_ids(1, 9).clamp_max(90)
    due = model.generate(ids, max_new_tokens=6, do_sample=False)[0, 9:].tolist()
    outputs = LLM(loaded, cache_memory=4 << 20).generate(
        [ids[0].tolist()], SamplingParams(max_tokens=6)
    )
    assert list(outputs[0].token_ids) == due


def test_a_whole_model_is_converted_by_its_path(tmp_path: Path) -> None:
    vision_model("llava").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    settings = {"calibration_texts": TEXTS, "max_calibration_length": 16, "compression_ratio": 2.0}
    model, _ = convert_to_mla(tmp_path, **settings)
    assert type(model).__name__ == "LatentLlavaForConditionalGeneration"
    assert model.config.image_token_index == IMAGE_TOKEN


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_5"])
def test_images_at_positions_of_their_own_are_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"positions of their own .* by their slot"):
        model_spec(AutoConfig.for_model(model_type))


def test_a_model_that_transformers_cannot_run_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'llama4' is not converted: .* image_outputs"):
        model_spec(AutoConfig.for_model("llama4"))


def test_a_model_that_reads_prompts_in_both_directions_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'paligemma' is not converted: .* directions"):
        model_spec(AutoConfig.for_model("paligemma"))


@pytest.mark.parametrize("text", ["biogpt", "falcon", "gpt_neox", "opt"])
def test_text_models_whose_modules_have_other_names(text: str) -> None:
    """Alone they have their layers at `transformer.h`, `gpt_neox.layers` and so on."""
    source = vision_model_with("llava", text_config=tiny_config(text).to_dict())
    converted, given = converted_copy(source), with_an_image("llava")
    expected, actual = (
        m.generate(**given, max_new_tokens=6, **GREEDY) for m in (source, converted)
    )
    assert torch.equal(actual.sequences, expected.sequences)
    assert_same_logits(torch.stack(actual.logits), torch.stack(expected.logits))


def test_a_text_model_that_lies_elsewhere_is_refused_in_words() -> None:
    source = copy.deepcopy(vision_model("llava"))
    source.model.language_model.blocks = source.model.language_model.layers
    del source.model.language_model.layers
    with pytest.raises(
        UnsupportedModelError,
        match="'llama', the text model inside of this 'llava' model, is not built as it is alone: "
        r"there is no module 'model.language_model.layers.0.self_attn'",
    ):
        read_attention(source, model_spec(source.config))
