"""What calibration reads, as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..paired_text import Text


@dataclass(frozen=True, eq=False, slots=True)
class CalibrationSequences:
    """Token ids (1, T), or pairs: text, part of which is held out from fitting, and exercises in
    remembering, which are all fitted to. Iterating gives both, the text first."""

    texts: list[Text]
    exercises: list[Text] = field(default_factory=list)

    @classmethod
    def of(cls, sequences: Iterable[Text]) -> CalibrationSequences:
        """These, or plain sequences as text."""
        return sequences if isinstance(sequences, cls) else cls(list(sequences))

    def __iter__(self) -> Iterator[Text]:
        yield from self.texts
        yield from self.exercises

    def __len__(self) -> int:
        return len(self.texts) + len(self.exercises)
