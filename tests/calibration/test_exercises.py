"""Recall exercises: the right tokens, the right positions, the exact distance."""

import pytest

from cacheshrink_hybrid.calibration.exercises import (
    RECALL_KINDS,
    RecallExercise,
    RecallKind,
    leading_special_tokens,
    recall_exercises,
)

DOCUMENTS = [f"document {i}: " + "some plain words to fill the gap, " * 40 for i in range(5)]


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


class PairTokenizer:
    """Two characters per token, and 1 in front, as a stand-in for a subword tokenizer."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        ids = [2 + sum(ord(c) << (8 * k) for k, c in enumerate(pair)) for pair in pairs]
        return [1, *ids] if add_special_tokens else ids


def exercise(
    kind: RecallKind, distance: int = 64, tokenizer=characters, seed: int = 0
) -> RecallExercise:
    return recall_exercises(
        tokenizer, kind=kind, distance=distance, count=1, seed=seed, filler=DOCUMENTS
    )[0]


@pytest.mark.parametrize("tokenizer", [characters, PairTokenizer()], ids=["characters", "pairs"])
@pytest.mark.parametrize("distance", [2, 64, 1000])
@pytest.mark.parametrize("kind", ["letters", "text"])
def test_passage_returns_at_the_exact_distance(kind: RecallKind, distance: int, tokenizer) -> None:
    found = exercise(kind, distance, tokenizer)
    num_prefix = len(leading_special_tokens(tokenizer))
    length = (len(found.token_ids) - num_prefix - distance) // 2
    original = found.token_ids[num_prefix : num_prefix + length]
    assert found.token_ids[-length:] == original
    assert num_prefix + 2 * length + distance == len(found.token_ids)


@pytest.mark.parametrize("kind", ["letters", "text"])
def test_all_but_the_first_quarter_of_a_passage_counts(kind: RecallKind) -> None:
    found = exercise(kind)
    length = (len(found.token_ids) - 64) // 2
    start = len(found.token_ids) - length
    expected = range(start + length // 4, len(found.token_ids))
    assert found.answer_positions == tuple(expected)


def test_asked_values_are_those_shown() -> None:
    found = exercise("keys")
    text = "".join(map(chr, found.token_ids))
    shown, asked = text[:48], text[48 + 64 :]
    assert sorted(shown.splitlines()) == sorted(asked.splitlines())
    answers = "".join(text[i] for i in found.answer_positions)
    assert answers == "".join(line.split(": ")[1] for line in asked.splitlines())


@pytest.mark.parametrize("kind", RECALL_KINDS)
def test_same_seed_same_exercises(kind: RecallKind) -> None:
    assert exercise(kind) == exercise(kind)
    assert exercise(kind) != exercise(kind, seed=1)


def test_special_tokens_lead() -> None:
    assert exercise("letters", tokenizer=PairTokenizer()).token_ids[0] == 1
    assert leading_special_tokens(characters) == []


def test_too_short_a_distance() -> None:
    with pytest.raises(ValueError, match="distance=1 is shorter"):
        exercise("letters", 1)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'numbers' is unknown"):
        exercise("numbers")  # type: ignore[arg-type]
