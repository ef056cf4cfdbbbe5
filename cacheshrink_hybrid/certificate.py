"""What a conversion was measured to cost, right after it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from .version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The loss of a converted model beside its source's on text that nothing was fitted to.

    Attributes:
        num_sequences, num_tokens: that were scored.
        num_reading_coded: of these tokens, that read something coded; the others stand so near to
            the beginning that exact tokens are all they read.
        weights: fingerprint of those that were measured, see `weights_fingerprint`; None if they
            were not at hand.
        source_loss: of the source, in nats per token.
        loss_increase: of the converted model over it, every token read from the cache as decoding
            reads it; the mean over sequences of their means.
        standard_error: of that mean; None for a single sequence.
        self_check: whether every replaced layer was first rebuilt at full rank and compared.
        versions: of this package and of those that computed.
    """

    num_sequences: int
    num_tokens: int
    num_reading_coded: int
    source_loss: float
    loss_increase: float
    standard_error: float | None
    self_check: bool
    weights: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_losses(
        cls, before: Sequence[float], after: Sequence[float], **known: Any
    ) -> Certificate:
        """Of mean losses by sequence, in nats per token.

        Args:
            known: `num_tokens`, `num_reading_coded`, `self_check` and `weights`.
        """
        increases = [new - old for old, new in zip(before, after, strict=True)]
        count = len(increases)
        mean = sum(increases) / count
        error = None
        if count > 1:
            spread = sum((increase - mean) ** 2 for increase in increases) / (count - 1)
            error = math.sqrt(spread / count)
        return cls(
            num_sequences=count,
            source_loss=sum(before) / count,
            loss_increase=mean,
            standard_error=error,
            versions=_versions(),
            **known,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Certificate:
        return cls(**values)

    @property
    def circumstances(self) -> str:
        """What was checked before, and which packages computed."""
        checked = "was" if self.self_check else "was not"
        names = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"every replaced layer {checked} rebuilt and compared before; {names}"

    def __str__(self) -> str:
        text, error = f"{self.num_sequences} held-out sequences", ""
        if self.standard_error is None:
            text = "1 held-out sequence, which gives no standard error"
        else:
            error = f" +- {self.standard_error:.4f}"
        return (
            f"measured on {text} ({self.num_tokens:,} tokens, {self.num_reading_coded:,} of which "
            f"read coded ones): {self.loss_increase:+.4f}{error} nats per token above "
            f"{self.source_loss:.3f}"
        )


def _versions() -> dict[str, str]:
    names = ("torch", "transformers")
    own = {"cacheshrink_hybrid": __version__, "python": sys.version.split()[0]}
    return own | {name: version(name) for name in names}
