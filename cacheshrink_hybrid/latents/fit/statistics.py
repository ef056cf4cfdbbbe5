"""What calibration leaves behind: second moments per attention module, however long the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Moments:
    """Streaming mean and covariance of vectors, in float64 on the CPU.

    Args:
        width: n, the length of the vectors.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._outer = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Count vectors (..., n)."""
        rows = vectors.detach().reshape(-1, vectors.shape[-1]).to("cpu", torch.float64)
        self.count += rows.shape[0]
        self._sum += rows.sum(0)
        self._outer += rows.T @ rows

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count

    @property
    def second_moment(self) -> Tensor:
        """E[y y^T], (n, n)."""
        return self._outer / self.count

    @property
    def covariance(self) -> Tensor:
        return self.second_moment - torch.outer(self.mean, self.mean)


class Samples:
    """A bounded number of vectors, evenly spread over all sequences and over each of them: when
    they grow too many, every second one of a sequence is left out, or every second sequence, and as
    many fewer are taken from then on.

    They lie in one buffer, which takes memory as it is filled. As small tensors that are made
    between the layers of a model, they would keep what is freed around them from being used again.

    Args:
        width: n, the length of the vectors.
        per_sequence: vectors kept of one sequence, the first among them.
        total: vectors kept at most.
    """

    def __init__(self, width: int, per_sequence: int = 64, total: int = 4096) -> None:
        self.per_sequence = per_sequence
        self.total = total
        self._buffer = torch.empty(total + per_sequence, width)
        self._lengths: list[int] = []
        """Of the stretches of the buffer, one per sequence."""
        self._seen, self._every = 0, 1

    def add(self, vectors: Tensor) -> None:
        """Keep some of the vectors (..., n) of one sequence."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        rows = vectors.detach().reshape(-1, vectors.shape[-1])
        wanted = min(self.per_sequence, rows.shape[0])
        picked = torch.arange(wanted) * rows.shape[0] // max(1, wanted)
        begin = sum(self._lengths)
        self._buffer[begin : begin + wanted] = rows[picked.to(rows.device)]
        self._lengths.append(wanted)
        while sum(self._lengths) > self.total:
            self._thin_out()

    def _thin_out(self) -> None:
        kept = self._stretches()
        if self.per_sequence > 1:
            kept = [stretch[::2] for stretch in kept]
            self.per_sequence //= 2
        else:
            kept, self._every = kept[::2], 2 * self._every
        self._lengths = list(map(len, kept))
        self._buffer[: sum(self._lengths)] = torch.cat(kept)

    def _stretches(self) -> list[Tensor]:
        return list(self._buffer[: sum(self._lengths)].split(self._lengths))

    def stacked(self) -> Tensor:
        """(kept, n), float32."""
        return self._buffer[: sum(self._lengths)].clone()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTokens:
    """The first tokens of sequences, apart from the others: few, but every query may rest on them,
    so that an error in them costs up to thousands of times as much.

    Attributes:
        share: of all tokens.
        mean, second_moment: E[y] and E[y y^T] of them, (2*J*D,) and (2*J*D, 2*J*D).
        metric: of errors in them, as `LatentStatistics.split_metric` where that is known, else as
            `LatentStatistics.metric`.
    """

    share: float
    mean: Tensor
    second_moment: Tensor
    metric: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentStatistics:
    """Second moments of y = [k; v] of one attention module, and what an error in y costs.

    Keys are taken where the projection gives them: before norm, multiplier and rotation.

    Attributes:
        mean: E[y], (2*J*D,).
        covariance: E[(y - mean)(y - mean)^T], (2*J*D, 2*J*D).
        metric: M, so that an error e costs e^T M e, (2*J*D, 2*J*D).
        num_tokens: calibration tokens that were counted; 0 if none were needed.
        samples: some of the y, (n, 2*J*D), float32, n bounded; None without text.
        split_metric: as `metric`, of errors in [k; v; u], (3*J*D, 3*J*D): u are keys that meet
            queries before their rotation, zero in the source. None where they were not watched.
        first: what is said of all tokens holds of all but these; None where they are not apart.
    """

    mean: Tensor
    covariance: Tensor
    metric: Tensor
    num_tokens: int
    samples: Tensor | None = None
    split_metric: Tensor | None = None
    first: FirstTokens | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutSamples:
    """y = [k; v] of one attention module on text that was kept from its statistics.

    Attributes:
        vectors: some of the y, (n, 2*J*D), float32.
        gradients: of the sampled loss with respect to y, (m, 2*J*D), float32, or to [k; v; u] (see
            `LatentStatistics.split_metric`), (m, 3*J*D); None where the metric takes none.
    """

    vectors: Tensor
    gradients: Tensor | None
