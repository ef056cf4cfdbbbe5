"""Reading a context in which some tokens have exact rows (`latents.exact_tokens`).

A single query reads each token in one form, so exact latents are put in the place of coded ones.
Several queries have a window each: exact latents are appended to the coded ones, as if they were
further slots, and the mask says which form of a token each query reads. What reads contexts without
exact tokens reads these too. Long chunks go in blocks of queries, so that masks stay small, and a
block meets the exact latents of its own windows only.

In a pool, kernels read exact rows where they lie (`pool_read`), and chunks of many tokens read them
here, beside what kernels read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..exact_tokens import ExactView
from .cached_layer import Slots
from .dense_read import Attend, products_of, read_expanded, read_latents, reads_directly
from .head import LatentHead
from .rotation import Angles

QUERY_BLOCK = 256


def read_with_exact(
    head: LatentHead,
    query: Tensor,
    latent: Tensor,
    exact: ExactView,
    slots: Slots,
    mask: Any,
    angles: Angles | None,
    attend: Attend,
    *,
    training: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention of queries (B, H, T, D) over coded latents (B, S, R), which may be written to where
    no gradients are taken, and exact ones.

    Args:
        slots: of the queries and of the coded latents.
        mask: as `attend` takes it.
        angles: of the slots of the coded latents, where keys are rotated when they are read.
        attend: attention function for many queries.
        training: keys and values are expanded, which dropout and gradients go through.

    Returns:
        Heads' outputs (B, T, H*D), and probabilities (B, H, T, S) where they are formed.
    """
    direct = not training and reads_directly(head, query, mask)
    if query.shape[2] == 1:
        merged = exact.overlaid(latent, slots.first_key, slots.first_query)
        if direct:
            return read_latents(head, query, merged, mask, angles)
        return read_expanded(head, query, merged, mask, angles, attend)
    outputs: list[Tensor] = []
    weights: list[Tensor | None] = []
    for start in range(0, query.shape[2], QUERY_BLOCK):
        asked = query[:, :, start : start + QUERY_BLOCK]
        forms = BothForms.of(latent, exact, slots, start, asked.shape[2])
        given = forms.latent, forms.mask(mask, head.window), forms.angles(angles)
        if direct:
            output, found = read_latents(head, asked, *given)
        else:
            lengthened, rows, turned = given
            output, found = read_expanded(head, asked, lengthened, rows, turned, attend)
        outputs.append(output)
        weights.append(None if found is None else forms.by_slot(found))
    formed = [found for found in weights if found is not None]
    return torch.cat(outputs, dim=1), torch.cat(formed, dim=2) if formed else None


def read_beside(
    head: LatentHead, query: Tensor, exact: ExactView, num_slots: int
) -> tuple[Tensor, Tensor]:
    """What rotated queries (B, H, T, D) of the last T of `num_slots` slots read from exact latents
    alone.

    Returns:
        Mean value channels (B, T, H, Rv) float32, zeros for queries that read none, and the
        log-sum-exp of their scores, (B, T, H) float32.
    """
    slots = Slots(num_slots - query.shape[2], 0, 0)
    angles = None
    if head.rebuilds_keys and head.rotary is not None:
        angles = head.rotary.angles(num_slots, query)
    means, sums = [], []
    for start in range(0, query.shape[2], QUERY_BLOCK):
        asked = query[:, :, start : start + QUERY_BLOCK]
        forms = BothForms.of(None, exact, slots, start, asked.shape[2])
        latent = forms.latent.to(query.dtype)
        products = products_of(head, asked, latent, forms.angles(angles)).float()
        hidden = ~forms.mask(None, head.window)
        scores = head.scores(products).masked_fill(hidden, -torch.inf)
        total = torch.logsumexp(scores, dim=-1)
        shift = torch.where(total == -torch.inf, 0.0, total)
        values = head.value_channels(latent).float()
        means.append(torch.matmul(torch.exp(scores - shift[..., None]), values[:, None]))
        sums.append(total)
    return torch.cat(means, dim=2).transpose(1, 2), torch.cat(sums, dim=2).transpose(1, 2)


@dataclass(frozen=True, eq=False, slots=True)
class BothForms:
    """What a block of queries may read: coded latents, then exact ones of neighbouring slots, then
    sinks.

    Attributes:
        latent: (B, n, R).
        slots: of these latents, (B or 1, n); negative where there are none.
        due: which of them each query reads, as far as their forms go, (B or 1, T, n).
        first: first slot of each sequence that is not padding, (B or 1,).
        queries: slots of the queries, (T,).
        start: number of the first of them in the step.
        first_key, num_keys: slots that the layer gives out, of which masks are.
    """

    latent: Tensor
    slots: Tensor
    due: Tensor
    first: Tensor
    queries: Tensor
    start: int
    first_key: int
    num_keys: int

    @classmethod
    def of(
        cls, latent: Tensor | None, exact: ExactView, slots: Slots, start: int, count: int
    ) -> BothForms:
        """Of the `count` queries from the one numbered `start` on.

        Args:
            latent: coded, (B, S, R); None for exact latents alone.
        """
        device, window = exact.first.device, exact.window
        first_query = slots.first_query + start
        queries = torch.arange(count, device=device) + first_query
        parts, places, due = [], [], []

        def add(part: Tensor, at: Tensor, seen: Tensor) -> None:
            parts.append(part)
            places.append(at)
            due.append(seen)

        if latent is not None:
            num_coded = latent.shape[1]
            if isinstance(first_query, int):
                behind = first_query + count - window - slots.first_key
                num_coded = max(0, min(num_coded, behind))
            at = (torch.arange(num_coded, device=device) + slots.first_key)[None]
            distance = queries[:, None] - at[:, None]
            add(latent[:, :num_coded], at, (distance >= window) & ~exact.is_sink(at)[:, None])
        if window:
            tail, neighbours = exact.tail_at(first_query - window + 1, window - 1 + count)
            at = neighbours[None]
            distance = queries[:, None] - at[:, None]
            add(tail, at, (distance >= 0) & (distance < window) & (at >= 0)[:, None])
        if exact.num_sinks:
            at = exact.sink_slots
            add(exact.sinks, at, queries[:, None] - at[:, None] >= window)
        rows = max(len(seen) for seen in due)
        like = parts[0] if latent is None else latent
        return cls(
            latent=torch.cat([part.to(like.dtype) for part in parts], dim=1),
            slots=torch.cat([at.expand(rows, -1) for at in places], dim=1),
            due=torch.cat([seen.expand(rows, -1, -1) for seen in due], dim=2),
            first=exact.first,
            queries=queries,
            start=start,
            first_key=slots.first_key,
            num_keys=slots.num_keys,
        )

    def mask(self, mask: Any, window: int | None) -> Tensor:
        """The mask (B or 1, 1 or H, T, n) of these queries and latents.

        Args:
            mask: over the slots of the coded latents; None, or one that is not 4-d, for causal from
                each sequence's first slot on.
            window: sliding window of the layer, None for none.
        """
        if isinstance(mask, Tensor) and mask.ndim == 4:
            rows = mask[:, :, self.start : self.start + len(self.queries)]
            at = self._places(mask.shape[3])
            batch = max(len(rows), len(at))
            at = at[:, None, None].expand(batch, *rows.shape[1:3], -1)
            rows = rows.expand(batch, -1, -1, -1).gather(3, at)
            if rows.dtype == torch.bool:
                return rows & self.due[:, None]
            return rows.masked_fill(~self.due[:, None], torch.finfo(rows.dtype).min)
        seen = self.due & (self.slots >= self.first[:, None])[:, None]
        if window is not None:
            seen = seen & (self.slots[:, None] > self.queries[:, None] - window)
        return seen[:, None]

    def angles(self, angles: Angles | None) -> Angles | None:
        """Those of these latents, (B or 1, n, rotary dim), of angles by slot."""
        if angles is None:
            return None
        cos, sin = (self._of_slots(x) for x in angles)
        return cos, sin

    def by_slot(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, H, T, S) of the slots, of those (B, H, T, n) of these latents."""
        at = self._places(self.num_keys)[:, None, None].expand_as(probabilities)
        whole = probabilities.new_zeros(*probabilities.shape[:3], self.num_keys)
        return whole.scatter_add(3, at, probabilities)

    def _places(self, num_keys: int) -> Tensor:
        """Where each latent's slot lies among those that the layer gives out, (B or 1, n)."""
        return (self.slots - self.first_key).clamp(0, num_keys - 1)

    def _of_slots(self, x: Tensor) -> Tensor:
        """Rows (B or 1, n, width) of rows by slot, (B or 1, S, width)."""
        at = self._places(x.shape[1])
        if len(at) == 1:
            return x[:, at[0]]
        return x.expand(len(at), -1, -1).gather(1, at[..., None].expand(-1, -1, x.shape[2]))
