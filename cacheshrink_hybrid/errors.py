"""The exceptions of the package.

Every message has four parts: what is wrong, what was given, what is allowed, and the remedy. Each
leaf also inherits the builtin that a caller would expect, so `except ValueError` keeps working.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from typing import Any


class CacheShrinkError(Exception):
    """Root of all errors that this package raises on purpose."""


class CacheShrinkWarning(UserWarning):
    """What was asked for is done, but the result may not be what was hoped for."""


class ConfigError(CacheShrinkError, ValueError):
    """An argument, or a combination of arguments, cannot be used. Lists all faults at once."""


class PromptLengthError(ConfigError):
    """A prompt is longer than the model has positions for."""


class UnsupportedModelError(CacheShrinkError, ValueError):
    """The model's family is unknown, already latent, or caches in a way of its own."""


class SelfCheckError(UnsupportedModelError):
    """A rewritten layer does not compute what the source's layer computes. Nothing was changed.

    Attributes:
        difference: |found - due| over |due| of the layer's output; None where nothing could be
            compared.
    """

    def __init__(self, message: str, difference: float | None = None) -> None:
        super().__init__(message)
        self.difference = difference


class CalibrationError(CacheShrinkError, ValueError):
    """The calibration text is empty, too short, of the wrong type, or gave non-finite numbers."""


class FactorizationError(CacheShrinkError, ValueError):
    """A matrix that should be finite and positive semi-definite is not."""


class PlanError(CacheShrinkError, ValueError):
    """The byte budget, or a rank, cannot be met by this model."""


class CheckpointError(CacheShrinkError, ValueError):
    """A directory is no checkpoint of ours, or its tensors are missing, extra or misshaped."""


class NotSupportedError(CacheShrinkError, RuntimeError):
    """An operation would give wrong results on this model or cache, so it is refused."""


class CacheFullError(CacheShrinkError, RuntimeError):
    """The pool has too few frames, free or evictable, for what was asked. Nothing was changed."""


class QueueFullError(CacheShrinkError, RuntimeError):
    """As many requests wait for the engine as may. Nothing was changed; later there may be room."""


class EngineClosedError(CacheShrinkError, RuntimeError):
    """The engine takes no more requests, and has given up those that it had."""


class FrameError(CacheShrinkError, ValueError):
    """A frame handle is stale or was never given out, or is named twice in one call."""


class SequenceError(CacheShrinkError, ValueError):
    """A sequence id is unknown or taken, or the sequence is not in a state for this operation."""


class KernelUnavailableError(CacheShrinkError, RuntimeError):
    """A `backend` was asked for whose kernels cannot run there, or cannot do what is needed."""


class OutputError(CacheShrinkError, OSError):
    """A file of results cannot be written. What was in its place is still there."""


class TrainingError(CacheShrinkError, RuntimeError):
    """Training had to stop: a loss or gradient is not finite, or its state cannot be written."""


def misplaced_settings(record: Any) -> Iterator[str]:
    """Fields of a dataclass of settings that hold an object, such as a model or another record of
    settings, where a number or a name is due; messages must not print these."""
    for field in fields(record):
        value = getattr(record, field.name)
        if not isinstance(value, (int, float, str, tuple, list, type(None))):
            yield (
                f"{field.name} is a {type(value).__name__}, and settings are numbers and names; "
                "check the order of the arguments"
            )


def unknown_names(given: Iterable[str], known: Iterable[str]) -> str | None:
    """Which of the given names are not known, all that are, and what may have been meant; None if
    none is unknown."""
    known = list(known)
    unknown = [name for name in given if name not in known]
    if not unknown:
        return None
    fault = f"{', '.join(unknown)}; known are {', '.join(known)}"
    for name in unknown:
        for meant in get_close_matches(name, known, n=1):
            fault += f"; is {meant} meant by {name}?"
    return fault
