"""Exercises in remembering: something is shown, other text follows, then it is asked for again.

An exercise is a token sequence and the positions whose tokens can only be known by memory. A model
is scored on it teacher-forced: the token at answer position t counts as recalled when it is the
argmax of the logits at t - 1.

Kinds, each `prefix | original | filler | return`:

- "letters": a string of random letters. Returns verbatim.
- "text": a passage of a document. Returns verbatim.
- "keys": lines `key: value` with random keys and values. All keys are asked again, shuffled.

Of a verbatim return the first quarter of the tokens is the cue, which says what returns and does
not count; every token after it does. Of an asked line only the value counts. `distance` is the
number of tokens between the last of the original and the first of the return.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

RecallKind = Literal["letters", "text", "keys"]
RECALL_KINDS: tuple[RecallKind, ...] = ("letters", "text", "keys")

_ALPHABETS = (string.ascii_lowercase, string.ascii_uppercase, string.ascii_lowercase + "0123456789")


@dataclass(frozen=True, slots=True)
class RecallExercise:
    """One sequence to be read by a model, and where it has to remember.

    Args:
        kind: what is to be remembered, one of `RECALL_KINDS`.
        token_ids: the whole sequence, with the tokenizer's leading special tokens.
        answer_positions: indices into `token_ids`, ascending, of the tokens that count.
        distance: tokens between the end of the original and the start of its return.
    """

    kind: RecallKind
    token_ids: tuple[int, ...]
    answer_positions: tuple[int, ...]
    distance: int

    def cut(self, length: int) -> RecallExercise:
        """Its first `length` tokens."""
        return replace(
            self,
            token_ids=self.token_ids[:length],
            answer_positions=tuple(i for i in self.answer_positions if i < length),
        )


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """Tokens to be remembered, and their return.

    Args:
        original: tokens of the first showing.
        again: tokens of the return.
        counts: for each token of `again`, whether it is an answer.
    """

    original: list[int]
    again: list[int]
    counts: list[bool]


def recall_exercises(
    tokenizer: Any,
    *,
    kind: RecallKind,
    distance: int,
    count: int,
    seed: int = 0,
    filler: Sequence[str] | None = None,
) -> list[RecallExercise]:
    """`count` exercises of one kind and distance, the same for the same arguments.

    Args:
        tokenizer: a Hugging Face tokenizer, or any function from text to token ids.
        kind: one of `RECALL_KINDS`.
        distance: tokens between original and return; filler with a newline at each end.
        count: number of exercises.
        seed: of the random passages, keys, values and places in the filler.
        filler: documents between original and return, and source of the "text" passages;
            the held-out documentation of `demo.corpus` when absent.

    Raises:
        ValueError: if `kind` is unknown, or `distance` is too short for the newlines.
    """
    if filler is None:
        from cacheshrink_hybrid.demo.corpus import held_out_text

        filler = held_out_text()
    encode, prefix = text_encoder(tokenizer), leading_special_tokens(tokenizer)
    rng = random.Random(f"{kind} {distance} {seed}")
    newline = encode("\n")
    if distance < 2 * len(newline):
        raise ValueError(
            f"distance={distance} is shorter than the newlines around the filler; "
            f"allowed: {2 * len(newline)} or more"
        )
    exercises = []
    for _ in range(count):
        item = memory_item(encode, kind, rng, filler)
        between = (
            newline + filler_tokens(encode, filler, distance - 2 * len(newline), rng) + newline
        )
        start = len(prefix) + len(item.original) + len(between)
        exercises.append(
            RecallExercise(
                kind=kind,
                token_ids=(*prefix, *item.original, *between, *item.again),
                answer_positions=tuple(start + i for i, counts in enumerate(item.counts) if counts),
                distance=distance,
            )
        )
    return exercises


def memory_item(
    encode: Callable[[str], list[int]],
    kind: RecallKind,
    rng: random.Random,
    documents: Sequence[str],
    *,
    num_chars: int | None = None,
    num_keys: int = 4,
) -> MemoryItem:
    """Something of the given kind to remember, drawn with `rng`.

    Args:
        encode: text to token ids, without special tokens.
        kind: one of `RECALL_KINDS`.
        rng: source of every choice.
        documents: where "text" passages come from.
        num_chars: length of a passage; 40 letters or 96 characters of text when absent.
        num_keys: number of lines of kind "keys".
    """
    if kind == "keys":
        return _key_value_lines(encode, rng, num_keys)
    if kind == "letters":
        alphabet = rng.choice(_ALPHABETS)
        ids = encode("".join(rng.choices(alphabet, k=num_chars or 40)))
    elif kind == "text":
        document = rng.choice(documents)
        num_chars = num_chars or 96
        start = rng.randrange(max(1, len(document) - 4 * num_chars))
        ids = encode(" ".join(document[start : start + 4 * num_chars].split())[:num_chars])
    else:
        raise ValueError(f"kind={kind!r} is unknown; allowed: {', '.join(RECALL_KINDS)}")
    cue = len(ids) // 4
    return MemoryItem(original=ids, again=ids, counts=[i >= cue for i in range(len(ids))])


def _key_value_lines(
    encode: Callable[[str], list[int]], rng: random.Random, num_keys: int
) -> MemoryItem:
    values: dict[str, str] = {}
    while len(values) < num_keys:
        key = "".join(rng.choices(string.ascii_lowercase, k=4))
        values[key] = "".join(rng.choices(string.digits, k=5))
    newline = encode("\n")
    lines = [(encode(f"{key}: "), encode(value)) for key, value in values.items()]
    original = [token for key, value in lines for token in (*key, *value, *newline)]
    rng.shuffle(lines)
    again: list[int] = []
    counts: list[bool] = []
    for asked, answer in lines:
        again += [*asked, *answer, *newline]
        counts += [False] * len(asked) + [True] * len(answer) + [False] * len(newline)
    return MemoryItem(original=original, again=again, counts=counts)


def filler_tokens(
    encode: Callable[[str], list[int]], documents: Sequence[str], count: int, rng: random.Random
) -> list[int]:
    """Exactly `count` tokens of running text, each document read from a random place on."""
    ids: list[int] = []
    rest = ""
    while len(ids) < count:
        if not rest:
            document = rng.choice(documents)
            rest = document[rng.randrange(max(1, len(document) - count)) :]
        num_chars = 2 * (count - len(ids))
        ids += encode(rest[:num_chars])
        rest = rest[num_chars:]
    return ids[:count]


def text_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """The tokenizer as a function from text to ids that adds no special tokens."""
    if not hasattr(tokenizer, "encode"):
        return tokenizer
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def leading_special_tokens(tokenizer: Any) -> list[int]:
    """The special tokens the tokenizer puts before a text, such as `<s>`; none for a function."""
    if not hasattr(tokenizer, "encode"):
        return []
    marked, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    return marked[: next(i for i in range(len(marked)) if marked[i : i + len(plain)] == plain)]
