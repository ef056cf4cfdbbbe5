"""What a request may wish for, and how its tokens are drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.engine.sampling import choose_token, token_scores
from cacheshrink_hybrid.errors import ConfigError, NotSupportedError

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.9, -math.inf, 0.0])


def draws(params: SamplingParams, count: int = 200, logits: torch.Tensor = LOGITS) -> set[int]:
    generator = params.generator()
    scores = token_scores(logits[None])[0]
    return {choose_token(scores, params, generator) for _ in range(count)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_p": "high"}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ("",)}, "empty string"),
        ({"stop": (3,)}, "stop"),
        ({"stop": 3}, "stop"),
        ({"ignore_eos": "no"}, "ignore_eos"),
    ],
)
def test_wishes_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**settings)


def test_all_faults_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"max_tokens=-1.*temperature='hot'.*top_p=2.*seed='x'"):
        SamplingParams(max_tokens=-1, temperature="hot", top_p=2, seed="x")


def test_wishes_in_other_types() -> None:
    params = SamplingParams(
        max_tokens=np.int64(3), temperature=np.float32(0.5), top_k=np.int32(2), stop=["a", "b"]
    )
    assert params.stop == ("a", "b")
    assert SamplingParams(stop=None).stop == ()
    assert SamplingParams(stop="a").stop == ("a",)
    assert len({params, params}) == 1
    assert draws(params) == {1, 3}


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
    ],
)
def test_who_may_be_drawn(settings: dict, allowed: set[int]) -> None:
    assert draws(SamplingParams(temperature=2.0, seed=0, **settings)) == allowed


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


def test_seeds() -> None:
    def numbers(seed: int | None) -> list[float]:
        generator = SamplingParams(temperature=1.0, seed=seed).generator()
        return torch.rand(3, generator=generator).tolist()

    assert numbers(4) == numbers(4) != numbers(5)
    assert numbers(None) != numbers(None)
    torch.manual_seed(7)
    first = numbers(None)
    torch.manual_seed(7)
    assert numbers(None) == first
    state = torch.get_rng_state()
    assert SamplingParams(seed=None).generator() is None  # greedy draws nothing
    numbers(4)
    assert torch.equal(torch.get_rng_state(), state)
