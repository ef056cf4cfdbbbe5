"""Perplexity through the cache path that generation uses.

Text is fed in chunks on top of a live cache, so that history is read from what the cache stores. A
shortcut that scores a window in one pass would say nothing about a compressed cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from ..calibration.text import checked_texts
from ..errors import CalibrationError, ConfigError
from ..text_ids import text_ids
from .cached_forward import cached_logits
from .defaults import DEFAULT_CHUNK

POSITION_EDGES = (4, 16, 64, 256, 512, 1024, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityResult:
    """Negative log-likelihood of a text, in nats.

    Attributes:
        total_nll: summed over all predicted tokens.
        num_tokens: predicted tokens.
        by_position: (first position, end, tokens, perplexity) for ranges of positions in a window.
    """

    total_nll: float
    num_tokens: int
    by_position: tuple[tuple[int, int, int, float], ...]

    @property
    def perplexity(self) -> float:
        return math.exp(self.total_nll / self.num_tokens)


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids of one window, and how many of its first tokens are context only."""

    ids: Tensor
    num_context: int


def compute_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 512,
    batch_size: int = 1,
    *,
    stride: int | None = None,
    chunk_length: int = DEFAULT_CHUNK,
    progress: bool = False,
) -> float:
    """Perplexity of `texts`; see `measure_perplexity`."""
    return measure_perplexity(
        model,
        tokenizer,
        texts,
        max_length=max_length,
        batch_size=batch_size,
        stride=stride,
        chunk_length=chunk_length,
        progress=progress,
    ).perplexity


@torch.no_grad()
def measure_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int = 512,
    batch_size: int = 1,
    stride: int | None = None,
    chunk_length: int = DEFAULT_CHUNK,
    new_cache: Callable[[], Cache] | None = None,
    progress: bool = False,
) -> PerplexityResult:
    """Score texts through a live cache.

    Args:
        model: converted or not.
        max_length: tokens per window; longer texts are cut into windows.
        batch_size: windows scored at once; the result does not depend on it beyond rounding.
        stride: tokens from the start of one window to the next; None for `max_length`. The overlap
            is context and is not counted again.
        new_cache: makes the cache of each batch; None for the one that generation uses.
        chunk_length: tokens per forward pass. Models whose recurrent scan cannot continue from a
            cache in pieces are fed whole windows instead.

    Raises:
        ConfigError: bad lengths, or windows beyond the model's positions.
        CalibrationError: texts that are no list of strings, or too short to predict a token.
    """
    stride = max_length if stride is None else stride
    for name, value, least in (
        ("max_length", max_length, 2),
        ("batch_size", batch_size, 1),
        ("stride", stride, 1),
        ("chunk_length", chunk_length, 1),
    ):
        if value < least:
            raise ConfigError(f"{name}={value} must be at least {least}")
    if stride > max_length:
        raise ConfigError(f"stride={stride} exceeds max_length={max_length} and would skip tokens")
    windows = list(_windows(tokenizer, checked_texts(texts, "texts"), max_length, stride))
    if not windows:
        raise CalibrationError("texts are too short: no text has two tokens, so none is predicted")
    longest = max(len(window.ids) for window in windows)
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"max_length={max_length} makes windows of {longest} tokens, and the model has {limit} "
            f"positions; give max_length={limit} or less"
        )
    return _scored(model, windows, max_length, batch_size, chunk_length, new_cache, progress)


@torch.no_grad()
def score_sequences(
    model: PreTrainedModel,
    sequences: Sequence[Tensor],
    *,
    batch_size: int = 1,
    chunk_length: int = DEFAULT_CHUNK,
) -> PerplexityResult:
    """As `measure_perplexity`, of token ids (T,) each, all of them predicted but the first."""
    windows = [Window(ids, 1) for ids in sequences]
    longest = max(len(ids) for ids in sequences)
    return _scored(model, windows, longest, batch_size, chunk_length, None, False)


def _scored(
    model: PreTrainedModel,
    windows: list[Window],
    max_length: int,
    batch_size: int,
    chunk_length: int,
    new_cache: Callable[[], Cache] | None,
    progress: bool,
) -> PerplexityResult:
    windows = sorted(windows, key=lambda window: -len(window.ids))
    total = torch.zeros(max_length, dtype=torch.float64)
    count = torch.zeros(max_length, dtype=torch.float64)
    starts = range(0, len(windows), batch_size)
    for start in tqdm(starts, desc="perplexity", unit="batch", disable=not progress):
        cache = None if new_cache is None else new_cache()
        _score(model, windows[start : start + batch_size], chunk_length, cache, total, count)
    return PerplexityResult(
        total_nll=float(total.sum()),
        num_tokens=int(count.sum()),
        by_position=tuple(_by_position(total, count)),
    )


def _windows(tokenizer, texts: Sequence[str], max_length: int, stride: int) -> Iterator[Window]:
    for text in texts:
        ids = torch.tensor(text_ids(tokenizer, text))
        for start in range(0, len(ids), stride):
            num_context = 1 if start == 0 else max(1, max_length - stride)
            window = ids[start : start + max_length]
            if len(window) > num_context:
                yield Window(window, num_context)
            if start + max_length >= len(ids):
                break


def _score(
    model: PreTrainedModel,
    windows: list[Window],
    chunk_length: int,
    cache: Cache | None,
    total: Tensor,
    count: Tensor,
) -> None:
    """Add the windows' losses, by position of the predicted token, to `total` and `count`."""
    longest = max(len(window.ids) for window in windows)
    # Padding on the right is never seen by a real token of a causal model.
    ids = torch.zeros(len(windows), longest, dtype=torch.long)
    counted = torch.zeros(len(windows), longest, dtype=torch.bool)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = window.ids
        counted[row, window.num_context : len(window.ids)] = True
    for start, logits in cached_logits(model, ids[:, :-1], chunk_length, cache):
        after = slice(start + 1, start + 1 + logits.shape[1])
        losses = nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            ids[:, after].flatten().to(logits.device),
            reduction="none",
        )
        mask = counted[:, after]
        total[after] += (losses.view(mask.shape).double().cpu() * mask).sum(0)
        count[after] += mask.sum(0)


def _by_position(total: Tensor, count: Tensor) -> Iterator[tuple[int, int, int, float]]:
    first = 1
    ends = sorted({*(edge for edge in POSITION_EDGES if edge < len(total)), len(total)})
    for end in ends:
        tokens = int(count[first:end].sum())
        if tokens:
            yield first, end, tokens, math.exp(float(total[first:end].sum()) / tokens)
        first = end
