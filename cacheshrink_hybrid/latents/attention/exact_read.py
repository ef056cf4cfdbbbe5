"""Reading a context in which some tokens have exact rows (`latents.exact_tokens`).

Exact keys and values are appended to the coded ones, as if they were further slots, and the mask
says which form of a token each query reads. Queries have a window each, so long chunks go in blocks
of queries: masks stay small, and a block meets the exact rows of its own windows only.

What kernels have read of coded rows in a pool is merged with what `read_exact` finds beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..exact_tokens import ExactView
from .cached_layer import Slots
from .dense_read import Attend, mixed, probabilities_of, products_of
from .head import LatentHead
from .rotation import Angles

QUERY_BLOCK = 256


def expanded_with_exact(
    head: LatentHead,
    query: Tensor,
    keys_values: tuple[Tensor, Tensor],
    exact: ExactView,
    slots: Slots,
    mask: Any,
    angles: Angles | None,
    attend: Attend,
) -> tuple[Tensor, Tensor | None]:
    """Attention of many queries (B, H, T, D) over coded latents and exact rows.

    Args:
        keys_values: of the coded latents, from `expanded_context`.
        slots: of the queries and of the coded latents.
        mask: as `attend` takes it.
        angles: of the slots of the coded latents; None where keys are not rotated.
        attend: attention function.

    Returns:
        Heads' outputs (B, T, H*D), and probabilities (B, H, T, S) where they are formed.
    """
    keys, values = keys_values
    outputs: list[Tensor] = []
    weights: list[Tensor | None] = []
    for start in range(0, query.shape[2], QUERY_BLOCK):
        asked = query[:, :, start : start + QUERY_BLOCK]
        forms = BothForms.of(exact, slots, start, asked.shape[2], keys.shape[2])
        coded = slice(0, forms.num_coded)
        exact_keys, exact_values = head.expanded(
            *head.exact_keys_values(forms.rows, forms.angles(angles))
        )
        output, found = attend(
            asked,
            torch.cat([keys[:, :, coded], exact_keys], dim=2),
            torch.cat([values[:, :, coded], exact_values], dim=2),
            forms.mask(mask, head.window),
        )
        outputs.append(output.flatten(2))
        weights.append(None if found is None else forms.by_slot(found))
    formed = [found for found in weights if found is not None]
    return torch.cat(outputs, dim=1), torch.cat(formed, dim=2) if formed else None


def latents_with_exact(
    head: LatentHead,
    query: Tensor,
    latent: Tensor,
    exact: ExactView,
    slots: Slots,
    mask: Any,
    angles: Angles | None,
) -> tuple[Tensor, Tensor]:
    """The same of few queries and coded latents (B, S, R): products with these and with exact keys
    share one softmax."""
    query = head.asking(query)
    forms = BothForms.of(exact, slots, 0, query.shape[2], latent.shape[1])
    latent, of_coded = latent[:, : forms.num_coded], None
    if angles is not None:
        cos, sin = angles
        of_coded = cos[:, : forms.num_coded], sin[:, : forms.num_coded]
    keys, values = head.exact_keys_values(forms.rows, forms.angles(angles))
    products = [
        products_of(head, query, latent, of_coded, slots.first_key),
        head.exact_products(query, keys, values),
    ]
    probabilities = probabilities_of(
        head, torch.cat(products, dim=-1), forms.mask(mask, head.window)
    )
    coded, beside = probabilities.split([forms.num_coded, keys.shape[2]], dim=-1)
    output = mixed(head, coded, latent) + head.averages(beside, values)
    return head.finished(output), forms.by_slot(probabilities)


def read_beside(
    head: LatentHead, query: Tensor, exact: ExactView, num_slots: int
) -> tuple[Tensor, Tensor]:
    """What rotated queries (B, H, T, D) of the last T of `num_slots` slots read from exact rows
    alone, as `read_exact` gives it."""
    slots = Slots(num_slots - query.shape[2], 0, num_slots)
    angles = None if head.rotary is None else head.rotary.angles(num_slots, query)
    found = []
    for start in range(0, query.shape[2], QUERY_BLOCK):
        asked = query[:, :, start : start + QUERY_BLOCK]
        forms = BothForms.of(exact, slots, start, asked.shape[2], 0)
        seen = forms.mask(None, head.window)
        found.append(read_exact(head, asked, forms.rows, seen, forms.angles(angles)))
    means, sums = zip(*found, strict=True)
    return torch.cat(means, dim=1), torch.cat(sums, dim=1)


def read_exact(
    head: LatentHead, query: Tensor, rows: Tensor, seen: Tensor, angles: Angles | None
) -> tuple[Tensor, Tensor]:
    """What rotated queries (B, H, T, D) read from exact rows (B, n, 2*J*D).

    Args:
        seen: rows that a query reads, (B or 1, 1, T, n).
        angles: of the rows' slots, (B or 1, n, rotary dim); None where keys are not rotated.

    Returns:
        Mean values (B, T, H*D), zeros for queries that read none, and the log-sum-exp of their
        scores, (B, T, H), both float32.
    """
    keys, values = head.exact_keys_values(rows, angles)
    # What lies where nobody looks may be anything, NaN too.
    values = torch.where(seen.any(dim=2)[..., None], values, 0.0)
    scores = head.scores(head.products(query, keys).float()).masked_fill(~seen, -torch.inf)
    total = torch.logsumexp(scores, dim=-1)
    shift = torch.where(total == -torch.inf, 0.0, total)
    weights = torch.exp(scores - shift[..., None])
    return head.averages(weights, values.float()), total.transpose(1, 2)


def angles_at(angles: Angles, slots: Tensor) -> Angles:
    """Angles (B, n, rotary dim) of slots (B, n), those of others where there are none, out of
    angles (B or 1, S, rotary dim) by slot."""
    cos, sin = angles
    at = slots.clamp(0, cos.shape[1] - 1)
    if len(cos) == 1:
        return cos[0, at], sin[0, at]
    at = at.expand(len(cos), -1)[..., None].expand(-1, -1, cos.shape[2])
    return cos.gather(1, at), sin.gather(1, at)


@dataclass(frozen=True, eq=False, slots=True)
class BothForms:
    """What a block of queries may read: the first coded slots, then exact rows of neighbouring
    slots, then those of sinks; n in all.

    Attributes:
        num_coded: coded slots.
        rows: exact ones, (B, n - num_coded, 2*J*D).
        slots: of all, (B or 1, n); negative where there are none.
        due: which of them each query reads, as far as their forms go, (B or 1, T, n).
        first: first slot of each sequence that is not padding, (B or 1,).
        queries: slots of the queries, (T,).
        start: number of the first of them in the step.
        first_key, num_keys: slots that the layer gives out, of which masks are.
    """

    num_coded: int
    rows: Tensor
    slots: Tensor
    due: Tensor
    first: Tensor
    queries: Tensor
    start: int
    first_key: int
    num_keys: int

    @classmethod
    def of(
        cls, exact: ExactView, slots: Slots, start: int, count: int, num_coded: int
    ) -> BothForms:
        """Of the `count` queries from the one numbered `start` on.

        Args:
            num_coded: coded slots that the layer gives out; 0 for exact rows alone.
        """
        device, window = exact.first.device, exact.window
        first_query = slots.first_query + start
        queries = torch.arange(count, device=device) + first_query
        if isinstance(first_query, int):
            behind = first_query + count - window - slots.first_key
            num_coded = max(0, min(num_coded, behind))
        at = (torch.arange(num_coded, device=device) + slots.first_key)[None]
        distance = queries[:, None] - at[:, None]
        places = [at]
        due = [(distance >= window) & ~exact.is_sink(at[0])[:, None]]
        rows = []
        if window:
            tail, neighbours = exact.tail_at(first_query - window + 1, window - 1 + count)
            at = neighbours[None]
            distance = queries[:, None] - at[:, None]
            rows.append(tail)
            places.append(at)
            due.append((distance >= 0) & (distance < window) & (at >= 0)[:, None])
        if exact.num_sinks:
            at = exact.sink_slots
            rows.append(exact.sinks)
            places.append(at)
            due.append(queries[:, None] - at[:, None] >= window)
        batch = max(len(seen) for seen in due)
        return cls(
            num_coded=num_coded,
            rows=torch.cat(rows, dim=1),
            slots=torch.cat([at.expand(batch, -1) for at in places], dim=1),
            due=torch.cat([seen.expand(batch, -1, -1) for seen in due], dim=2),
            first=exact.first,
            queries=queries,
            start=start,
            first_key=slots.first_key,
            num_keys=slots.num_keys,
        )

    def mask(self, mask: Any, window: int | None) -> Tensor:
        """The mask (B or 1, 1 or H, T, n) of these queries and rows.

        Args:
            mask: over the slots that the layer gives out; None, or one that is not 4-d, for causal
                from each sequence's first slot on.
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
        """Those of the exact rows, (B or 1, n - num_coded, rotary dim), of angles by slot."""
        if angles is None:
            return None
        slots = self.slots[:, self.num_coded :] - self.first_key
        return angles_at(angles, slots)

    def by_slot(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, H, T, S) of the slots, of those (B, H, T, n) of these rows."""
        at = self._places(self.num_keys)[:, None, None].expand_as(probabilities)
        whole = probabilities.new_zeros(*probabilities.shape[:3], self.num_keys)
        return whole.scatter_add(3, at, probabilities)

    def _places(self, num_keys: int) -> Tensor:
        """Where each row's slot lies among those that the layer gives out, (B or 1, n)."""
        return (self.slots - self.first_key).clamp(0, num_keys - 1)
