"""How the tokens of a request are drawn."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.engine.sampling import choose_token, token_scores
from cacheshrink_hybrid.errors import NotSupportedError

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.9, -math.inf, 0.0])


def draws(params: SamplingParams, count: int = 200, logits: torch.Tensor = LOGITS) -> set[int]:
    generator = params.generator()
    scores = token_scores(logits[None])[0]
    return {choose_token(scores, params, generator) for _ in range(count)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 1e-3, 5e-324])
@pytest.mark.parametrize("temperature", [5e-324, 1e-38, 1e-20, 1e-6, 1e-5, 1.0, 1e30, 1e308])
def test_no_temperature_overflows(temperature, top_p, scale, dtype) -> None:
    logits = (torch.randn(50, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=0)
    drawn = draws(params, 5, logits)
    assert all(0 <= token < 50 for token in drawn)
    if temperature <= 1e-5 and dtype == torch.float32:
        assert drawn == {int(logits.argmax())}


def test_temperatures_are_those_of_the_softmax() -> None:
    count = 4000
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(temperature=0.7)
    scores = token_scores(LOGITS[None])[0]
    drawn = torch.tensor([choose_token(scores, params, generator) for _ in range(count)])
    shares = torch.bincount(drawn, minlength=len(LOGITS)) / count
    torch.testing.assert_close(shares, (LOGITS / 0.7).softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 5}),
        ({"top_p": 1e-30}, {1}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.999999}, {0, 1, 2, 3, 5}),
        ({"top_p": 1}, {0, 1, 2, 3, 5}),
        ({"top_k": 3, "top_p": 0.5}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"min_p": 0.94}, {1, 3}),
        ({"min_p": 1e-9}, {0, 1, 2, 3, 5}),
    ],
)
def test_who_may_be_drawn(settings: dict, allowed: set[int]) -> None:
    assert draws(SamplingParams(temperature=2.0, seed=0, **settings)) == allowed


@pytest.mark.parametrize("seed", range(4))
def test_who_may_be_drawn_is_as_in_transformers(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(40, generator=generator)
    top_p, min_p, temperature = (0.5 + torch.rand(3, generator=generator) / 2).tolist()
    params = SamplingParams(
        temperature=temperature, top_k=15, top_p=top_p, min_p=min_p / 20, seed=seed
    )
    due = logits[None]
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(15),
        TopPLogitsWarper(top_p),
        MinPLogitsWarper(min_p / 20),
    ):
        due = warper(torch.empty(1, 0), due)
    generator = torch.Generator().manual_seed(seed)
    scores = token_scores(logits[None])[0]
    drawn = torch.tensor([choose_token(scores, params, generator) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=40) / len(drawn)
    assert not shares[due[0].isinf()].any()
    torch.testing.assert_close(shares, due[0].softmax(-1), atol=0.03, rtol=0)


def test_equal_logits_do_not_widen_top_k() -> None:
    assert len(draws(SamplingParams(temperature=1.0, top_k=2, seed=0), logits=torch.ones(9))) == 2


def test_greedy_takes_the_first_of_the_highest() -> None:
    assert draws(SamplingParams(), 3) == {1}
    assert draws(SamplingParams(temperature=1e-9), 3, torch.tensor([1.0, 2.0, 2.0])) == {1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(value: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[2] = value
    with pytest.raises(NotSupportedError, match="highest logit"):
        draws(SamplingParams(temperature=temperature), 1, logits)
