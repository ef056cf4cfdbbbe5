"""Requests that begin alike, token by token: seeded synthetic ones, and recorded ones.

Tokens are any numbers; what is equal is the same text. Groups of requests (a document with its
questions, a conversation) start one after another and go on beside each other, each at exponential
intervals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError

Tokens = NDArray[np.int64]
BLOCK_TOKENS = 512
"""Of a block that has a hash in recorded traces."""
BESIDE = 24.0
"""Groups that go on at once, about, unless said otherwise."""


@dataclass(frozen=True, eq=False, slots=True)
class PromptRequest:
    """One request.

    Attributes:
        arrival: in any unit.
        prompt, output: tokens.
    """

    arrival: float
    prompt: Tokens
    output: Tokens


Group = list[tuple[Tokens, Tokens]]
"""Prompts and outputs of requests that follow on each other."""


class Writer:
    """Draws texts and their lengths."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def text(self, low: int, high: int) -> Tokens:
        """New text, of any length in [low, high]."""
        return self._new(int(self.random.integers(low, high + 1)))

    def long_text(self, median: int, spread: float, low: int, high: int) -> Tokens:
        """New text of log-normal length."""
        length = self.random.lognormal(np.log(median), spread)
        return self._new(int(np.clip(length, low, high)))

    def _new(self, length: int) -> Tokens:
        return self.random.integers(0, 1 << 60, length)


def documents(write: Writer) -> Iterator[Group]:
    """Documents of some thousand tokens, with one question after another to each."""
    while True:
        document = write.long_text(3000, 0.7, 400, 16000)
        count = 1 + write.random.poisson(5)
        yield [
            (np.concatenate([document, write.text(20, 80)]), write.text(20, 200))
            for _ in range(count)
        ]


def system_prompts(write: Writer) -> Iterator[Group]:
    """60 system prompts, some far more in use than others, with a text of each user's own."""
    prompts = [write.long_text(1200, 0.8, 100, 8000) for _ in range(60)]
    weights = 1 / np.arange(1, 61)
    while True:
        prompt = prompts[write.random.choice(60, p=weights / weights.sum())]
        yield [(np.concatenate([prompt, write.text(50, 900)]), write.text(50, 300))]


def chats(write: Writer) -> Iterator[Group]:
    """Conversations of several turns over four common beginnings."""
    beginnings = [write.long_text(600, 0.7, 100, 3000) for _ in range(4)]
    while True:
        history, turns = beginnings[write.random.integers(4)], []
        for _ in range(1 + write.random.poisson(7)):
            prompt = np.concatenate([history, write.text(20, 300)])
            answer = write.text(50, 400)
            turns.append((prompt, answer))
            history = np.concatenate([prompt, answer])
        yield turns


def agents(write: Writer) -> Iterator[Group]:
    """Tasks with long descriptions of tools and results of theirs; now and then a step is tried
    again, or the last answer comes back without its thoughts."""
    tools = [write.long_text(4000, 0.4, 1000, 9000) for _ in range(3)]
    while True:
        histories = [np.concatenate([tools[write.random.integers(3)], write.text(100, 1000)])]
        turns = []
        for _ in range(3 + write.random.poisson(6)):
            if len(histories) > 2 and write.random.random() < 0.12:
                histories = histories[: -int(write.random.integers(1, len(histories)))]
            prompt, answer = histories[-1], write.text(30, 300)
            turns.append((prompt, answer))
            thoughts = len(answer) // 2 if write.random.random() < 0.25 else 0
            histories.append(np.concatenate([prompt, answer[thoughts:], write.text(50, 1200)]))
        yield turns


def overlaps(write: Writer) -> Iterator[Group]:
    """Prompts of 4096 tokens that begin like one of 12 others, as far as chance has it."""
    bases = [write.text(4096, 4096) for _ in range(12)]
    while True:
        shared = int(write.random.integers(0, 4097))
        prompt = np.concatenate(
            [bases[write.random.integers(12)][:shared], write.text(4096 - shared, 4096 - shared)]
        )
        yield [(prompt, write.text(1, 1))]


def mixed(write: Writer) -> Iterator[Group]:
    """As many requests of system prompts as of chats, and of documents half as many."""
    parts = [system_prompts(write), chats(write), documents(write)]
    shares = np.array([1.0, 1 / 8, 0.5 / 6])
    while True:
        yield next(parts[write.random.choice(3, p=shares / shares.sum())])


SYNTHETIC: dict[str, Callable[[Writer], Iterator[Group]]] = {
    "documents": documents,
    "system_prompts": system_prompts,
    "chats": chats,
    "agents": agents,
    "overlaps": overlaps,
    "mixed": mixed,
}


def synthetic_workload(
    name: str, count: int, seed: int = 0, *, beside: float = BESIDE
) -> list[PromptRequest]:
    """A seeded workload of `count` requests in the order of arrival.

    Args:
        beside: see `interleaved`.

    Raises:
        ConfigError: an unknown name, or no requests.
    """
    if name not in SYNTHETIC or count < 1:
        raise ConfigError(
            f"workload {name!r} with {count} requests cannot be made; choose one of "
            f"{', '.join(SYNTHETIC)} and a count >= 1"
        )
    write = Writer(np.random.default_rng(seed))
    return interleaved(SYNTHETIC[name](write), count, write.random, beside=beside)


def interleaved(
    groups: Iterable[Group], count: int, random: np.random.Generator, *, beside: float
) -> list[PromptRequest]:
    """The first `count` requests of groups that start by a Poisson process, and whose requests
    follow on each other at exponential intervals.

    Args:
        beside: groups that go on at once, about.
    """
    found: list[PromptRequest] = []
    start = 0.0
    for group in groups:
        arrival = start
        for prompt, output in group:
            found.append(PromptRequest(arrival, prompt, output))
            arrival += random.exponential(beside)
        start += random.exponential(len(group))
        if len(found) >= 2 * count:
            break
    return sorted(found, key=lambda request: request.arrival)[:count]


def read_workload(path: Path, count: int | None = None) -> list[PromptRequest]:
    """The first `count` requests of a recorded trace in Mooncake's format: JSON lines with
    `timestamp`, `input_length`, `output_length` and `hash_ids`, one for every `BLOCK_TOKENS` tokens
    of the prompt; blocks with one hash are the same text behind the same text. In the order of
    their timestamps, and of the file where these are equal.

    Raises:
        ConfigError: no such file, or another format.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file; give the path of a trace")
    found = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == count:
                    break
                found.append(_recorded(json.loads(line), number))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is no trace in Mooncake's format ({error!r}); each line is to have timestamp, "
            "input_length, output_length and hash_ids, one id per 512 tokens"
        ) from error
    if not found:
        raise ConfigError(f"{path} has no requests; give a trace with one per line")
    return sorted(found, key=lambda request: request.arrival)


def _recorded(entry: dict, number: int) -> PromptRequest:
    length = int(entry["input_length"])
    blocks = np.asarray(entry["hash_ids"], dtype=np.int64)
    if len(blocks) != -(-length // BLOCK_TOKENS) or length < 1:
        raise ValueError(f"{len(blocks)} hash_ids for {length} tokens")
    tokens = blocks[:, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS)
    own = -1 - (number << 32) - np.arange(max(1, int(entry["output_length"])))
    return PromptRequest(float(entry["timestamp"]), tokens.reshape(-1)[:length], own)
