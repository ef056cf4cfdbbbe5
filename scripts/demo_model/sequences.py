"""Endless training sequences: text, interrupted by passages that return later.

Plain text alone teaches a small model to look back some 16 characters; a curriculum of returns,
short and near first, teaches it to remember.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cacheshrink_hybrid.calibration.exercises import RECALL_KINDS, MemoryItem, memory_item

from .characters import BOS, NEWLINE, encode

MAX_GAP = 1100
UNKNOWABLE_WEIGHT = 0.1  # in the loss, of tokens such as those of a random string's first showing


@dataclass
class Curriculum:
    """How long passages are and how far away they return; both grow with success.

    Args:
        num_chars: letters of the longest passage.
        gap: tokens of the longest way back; below 4 everything returns at once.
        hits, asked: recent answers at the hard end, right and all.
    """

    num_chars: int = 6
    gap: int = 0
    hits: int = 0
    asked: int = 0

    def report(self, hits: int, asked: int) -> None:
        """Counts answers at the hard end and moves on when 85 % of the last 1500 are right."""
        self.hits, self.asked = self.hits + hits, self.asked + asked
        if self.asked < 1500:
            return
        if self.hits > 0.85 * self.asked:
            if self.num_chars < 12:
                self.num_chars = math.ceil(self.num_chars * 1.4)
            else:
                self.gap = min(MAX_GAP, max(48, int(self.gap * 1.6)))
                self.num_chars = min(56, max(24, math.ceil(self.num_chars * 1.15)))
        self.hits = self.asked = 0


@dataclass(frozen=True)
class Batch:
    """Sequences (B, T + 1), and for each predicted token (B, T) what it is.

    Args:
        ids: token ids.
        weights: weight in the loss.
        kinds: of an answer, the index in `RECALL_KINDS`; -1 elsewhere.
        distances: of an answer, tokens between the original and its return.
    """

    ids: Tensor
    weights: Tensor
    kinds: Tensor
    distances: Tensor


class LabelledToken(NamedTuple):
    """One token of a training sequence; the fields are those of `Batch`."""

    id: int
    weight: float = 1.0
    kind: int = -1
    distance: int = 0


class Appointment(NamedTuple):
    """An item to be brought back as soon as the sequence has `due` tokens."""

    due: int
    original_end: int
    kind: int
    item: MemoryItem


class SequenceMixer:
    """Endless training sequences: documentation, interrupted by passages that return later."""

    def __init__(self, documents: Sequence[str], curriculum: Curriculum, seed: int) -> None:
        self.rng = random.Random(seed)
        self.documents = documents
        self.word_lists = [_shuffled_words(document, self.rng) for document in documents]
        self.sizes = [len(document) for document in documents]
        self.encoded = [encode(document) for document in documents]
        self.curriculum = curriculum

    def batch(self, shape: tuple[int, int]) -> Batch:
        rows = [self._sequence(shape[1] + 1) for _ in range(shape[0])]
        ids, weights, kinds, distances = torch.tensor(rows, dtype=torch.float64).unbind(-1)
        return Batch(
            ids.long(), weights[:, 1:].float(), kinds[:, 1:].long(), distances[:, 1:].long()
        )

    def _sequence(self, length: int) -> list[LabelledToken]:
        rng = self.rng
        row = [LabelledToken(BOS, weight=0.0)]
        waiting: list[Appointment] = []  # by due
        next_item = rng.randint(1, 60)
        document = rng.choices(self.encoded, self.sizes)[0]
        place = rng.randrange(max(1, len(document) - length // 2))
        while len(row) < length:
            if waiting and waiting[0].due <= len(row):
                row += _return(waiting.pop(0), len(row))
            elif len(row) >= next_item:
                kind, item = self._item()
                room = length - len(row) - 2 * len(item.original) - 4
                if room < 0:
                    next_item = length
                    continue
                weight = 1.0 if RECALL_KINDS[kind] == "text" else UNKNOWABLE_WEIGHT
                row.append(LabelledToken(NEWLINE))
                row += [LabelledToken(token, weight) for token in item.original]
                end, gap = len(row), self._gap(room)
                if gap > 0:
                    row.append(LabelledToken(NEWLINE))
                waiting.append(Appointment(end + gap, end, kind, item))
                waiting.sort(key=lambda appointment: appointment.due)
                next_item = len(row) + int(rng.expovariate(0.4 / (len(item.original) + 4)))
            elif place >= len(document):
                row.append(LabelledToken(BOS, weight=0.0))
                document, place = rng.choices(self.encoded, self.sizes)[0], 0
            else:
                until = min(length, next_item, *(appointment.due for appointment in waiting))
                chunk = document[place : place + until - len(row)]
                place += len(chunk)
                row += [LabelledToken(token) for token in chunk]
        return row[:length]

    def _item(self) -> tuple[int, MemoryItem]:
        """Something to remember, and the index of its kind.

        Text comes last and then most: where the words themselves suggest how a passage goes on,
        the model is slowest to look back. Half of it has its words shuffled.
        """
        rng, limit = self.rng, self.curriculum.num_chars
        kind = rng.choices(range(3), (0.25, 0.5, 0.25) if self.curriculum.gap else (0.7, 0, 0.3))[0]
        num_chars = rng.randint(max(6, limit // 3), limit)
        if RECALL_KINDS[kind] == "text":
            num_chars *= 3
        return kind, memory_item(
            encode,
            RECALL_KINDS[kind],
            rng,
            rng.choice((self.documents, self.word_lists)),
            num_chars=num_chars,
            num_keys=rng.randint(1, max(2, min(6, limit // 6))),
        )

    def _gap(self, room: int) -> int:
        """Tokens of text before something returns, at most `room`: 0, or near or far."""
        rng, gap = self.rng, min(self.curriculum.gap, room)
        if gap < 4 or rng.random() < 0.15:
            return 0
        if rng.random() < 0.5:
            return rng.randint(gap // 2, gap)
        return int(math.exp(rng.uniform(0, math.log(gap))))


def _return(appointment: Appointment, position: int) -> list[LabelledToken]:
    """The lines in which an item returns when the sequence has `position` tokens."""
    _, original_end, kind, item = appointment
    distance = position + 1 - original_end
    tokens = [
        LabelledToken(token, 1.0, kind, distance)
        if counts
        else LabelledToken(token, UNKNOWABLE_WEIGHT)
        for token, counts in zip(item.again, item.counts, strict=True)
    ]
    return [LabelledToken(NEWLINE), *tokens, LabelledToken(NEWLINE)]


def _shuffled_words(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)
