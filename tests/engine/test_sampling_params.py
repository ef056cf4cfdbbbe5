"""What a request may wish for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.errors import ConfigError


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
        ({"include_stop": 1}, "include_stop"),
        ({"n": 0}, "n=0"),
        ({"n": True}, "n=True"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is more than max_tokens=8"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"presence_penalty": 1e308}, "presence_penalty=1e[+]308 must be a number of at most"),
        ({"logit_bias": {5: -1e308}}, "at most 10000 either way"),
        ({"bad_words": ["\ud800"]}, "half a surrogate pair"),
        ({"stop": "\udfff"}, "half a surrogate pair"),
        ({"presence_penalty": math.inf}, "presence_penalty"),
        ({"frequency_penalty": "a"}, "frequency_penalty"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 0.5}, "prompt_logprobs"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"logit_bias": {5: math.nan}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"allowed_token_ids": "5"}, "allowed_token_ids"),
        ({"stop_token_ids": [1.5]}, "stop_token_ids"),
        ({"bad_words": [3]}, "bad_words"),
        ({"bad_words": ""}, "bad_words has an empty string"),
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
    assert SamplingParams(bad_words="a").bad_words == ("a",)
    assert SamplingParams(logit_bias={np.int64(3): 1}).logit_bias == ((3, 1.0),)
    assert SamplingParams(allowed_token_ids=[1], stop_token_ids=None).stop_token_ids == ()
    assert len({params, params}) == 1


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


def test_continuations_have_seeds_of_their_own() -> None:
    def number(seed: int, index: int) -> float:
        generator = SamplingParams(temperature=1.0, seed=seed).generator(index)
        return torch.rand((), generator=generator).item()

    assert number(4, 1) == number(5, 0) != number(4, 0)
    assert number(2**64 - 1, 1) == number(0, 0)
