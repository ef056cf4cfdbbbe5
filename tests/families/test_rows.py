"""Families that add no axis: that their rows read them right, in few ways of feeding each.

What their axes do in every other way is tested of the families of `CASES`, by `test_identity.py`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

from cacheshrink_hybrid import CompressionConfig, convert_model, load_mla_model, save_mla_model
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.families import FAMILIES, model_spec
from cacheshrink_hybrid.states.kinds import compressible_layers
from tests.families.tiny_configs import CASES, RECURRENT_CASES, ROW_CASES, tiny_config, tiny_model
from tests.models import (
    Pair,
    assert_same_padded_generation,
    calibration_ids,
    equal_pieces,
    logits_in_pieces,
    logits_of,
    pair,
    prefill_then_decode,
    random_ids,
)
from tests.tolerances import assert_same_logits, largest_difference

NUM_TOKENS, NUM_PREFILL = 29, 15
CODE_EDGE = 5e-3
"""What a latent makes of the logits that lies within rounding of the edge between two codes, and
falls on either side."""
METHOD_OF_CASE = dict(zip(ROW_CASES, ["joint", "separate"] * len(ROW_CASES), strict=False))

every_case = pytest.mark.parametrize("case", ROW_CASES)


def states(case: str) -> dict[str, Any]:
    """Settings by which recurrent layers are replaced too, where the case has any."""
    recurrent = compressible_layers(model_spec(tiny_config(case)))
    return {"state_dtype": "float32", "replay_length": 3} if recurrent else {}


def full_rank(case: str) -> Pair:
    return pair(case, METHOD_OF_CASE[case], **states(case))


@cache
def coded(case: str) -> PreTrainedModel:
    """Few-bit rows beside those of the last few tokens, which stay exact."""
    model = tiny_model(case)
    settings = {"exact_sinks": 0, "exact_window": 4, **states(case)}
    config = CompressionConfig(compression_ratio=4.0, metric="activation", **settings)
    convert_model(model, config, calibration_ids())
    return model


def test_every_family_has_a_case() -> None:
    cases = [*CASES, *RECURRENT_CASES, *ROW_CASES]
    assert {tiny_config(case).model_type for case in cases} == {*FAMILIES} & {*CONFIG_MAPPING}


def test_families_without_attention_say_so() -> None:
    for case in [*CASES, *RECURRENT_CASES, *ROW_CASES]:
        spec = model_spec(tiny_config(case))
        assert bool(spec.attention_layers) == FAMILIES[spec.model_type].attends


@every_case
def test_identity(case: str) -> None:
    source, converted = full_rank(case).both()
    ids = random_ids(2, NUM_TOKENS)
    due = logits_of(source, ids)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert_same_logits(logits_of(converted, ids), due)
    assert_same_logits(logits_in_pieces(source, ids, pieces), due)
    assert_same_logits(logits_in_pieces(converted, ids, pieces), due)
    assert_same_logits(logits_in_pieces(converted, ids, equal_pieces(NUM_TOKENS, 7)), due)


@every_case
def test_left_padding_and_beams(case: str) -> None:
    source, converted = full_rank(case).both()
    ids = random_ids(3, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, :1] = 0
    assert_same_padded_generation(source, converted, ids, mask, 6)
    beams = {"attention_mask": mask, "num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(converted.generate(ids, **beams), source.generate(ids, **beams))


@every_case
def test_coded_decoding_agrees_with_one_pass(case: str) -> None:
    model = coded(case)
    ids = random_ids(2, NUM_TOKENS)
    due = logits_of(model, ids)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert largest_difference(logits_in_pieces(model, ids, pieces), due) < CODE_EDGE


@every_case
def test_a_saved_model_goes_on_in_the_engine(case: str, tmp_path: Path) -> None:
    model = coded(case)
    save_mla_model(model, None, tmp_path)
    loaded, _ = load_mla_model(tmp_path)
    prompts = [random_ids(1, length, seed=length) for length in (4, 11)]
    due = []
    for ids in prompts:
        tokens = model.generate(ids, do_sample=False, max_new_tokens=8)
        due.append(tuple(tokens[0, ids.shape[1] :].tolist()))
    llm = LLM(loaded, cache_memory=4 << 20, prefill_chunk=6)
    outputs = llm.generate([ids[0].tolist() for ids in prompts], SamplingParams(max_tokens=8))
    assert [output.token_ids for output in outputs] == due
