"""Log-probabilities of prompts, as vLLM answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import LogProbability, RequestOutput
from ..engine.token_bytes import TokenBytes

Json = dict[str, Any]


def add_prompt_logprobs(
    answer: Json, outputs: Sequence[RequestOutput], token_bytes: TokenBytes, *, of_choices: bool
) -> None:
    """Tell them in a whole answer, whose outputs have them.

    Args:
        of_choices: each choice tells them, as completions do; else the answer, which has one
            prompt.
    """
    places = answer["choices"] if of_choices else [answer]
    for place, output in zip(places, outputs, strict=False):
        told = output.prompt_logprobs or ()
        place["prompt_logprobs"] = [
            None if one is None else _told(one, token_bytes) for one in told
        ]


def _told(one: LogProbability, token_bytes: TokenBytes) -> Json:
    """The token that came and the most likely ones, by their ids."""
    ranked = [(one.token_id, one.value, one.rank)]
    ranked += [(token, value, place + 1) for place, (token, value) in enumerate(one.top)]
    found: Json = {}
    for token, value, rank in ranked:
        told = {"logprob": value, "rank": rank, "decoded_token": token_bytes.text(token)}
        found.setdefault(str(token), told)
    return found
