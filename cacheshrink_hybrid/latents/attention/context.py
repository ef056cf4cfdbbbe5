"""What the queries of one step read: all tokens of a layer so far, those of the step included.

A layer that stores what other layers read as well hands its context on to these. They read it with
queries of their own, all of the step's or the last of them.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import NotSupportedError
from ...kernels.latents.decode import LatentRead
from ...kernels.latents.paged_rows import PagedRows
from ...pool.lifetime import TOKENS
from ...pool.memory import RowStep
from ..exact_tokens import ExactView
from .cached_layer import Slots
from .dense_read import (
    MAX_DECODE_TOKENS,
    Attend,
    expanded_context,
    read_latents,
    reads_directly,
    without_empty_slots,
)
from .exact_read import expanded_with_exact, latents_with_exact, read_beside
from .head import LatentHead
from .pool_read import ExactTable, read_exact_in_frames, read_pool
from .prefill import expanded_prefill, expanding_pays
from .rotary_key import split_queries
from .rotation import Angles


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class DenseContext:
    """A context of tensors, which torch reads.

    Attributes:
        latent: of all slots that are read, decoded, (B, S, R).
        slots: of the step's tokens and of these.
        num_new: tokens of the step, T.
        query_angles, key_angles: of the step's tokens, and of the slots that are read; None where
            keys are not rotated.
        is_static: nothing was written yet to some of the slots.
        exact: exact keys and values that may be read; None where no token stays exact.
        keys_values: what `expanded_context` makes of the latents; None where nobody needed it.
    """

    latent: Tensor
    slots: Slots
    num_new: int
    query_angles: Angles | None
    key_angles: Angles | None
    is_static: bool = False
    exact: ExactView | None = None
    keys_values: tuple[Tensor, Tensor] | None = None

    def expanded(self, head: LatentHead) -> DenseContext:
        """The same with keys and values."""
        keys_values = expanded_context(head, self.latent, self.key_angles, self.slots.first_key)
        return replace(self, keys_values=keys_values)

    def mask(self, head: LatentHead, query: Tensor, mask: Any) -> Any:
        """A mask of queries (B, H, t, D), in the place of None where some slots are empty."""
        if mask is not None or not self.is_static:
            return mask
        slots = self._slots_of(query)
        return without_empty_slots(
            head, query, self.latent.shape[1], slots.first_query, slots.first_key
        )

    def read(
        self, head: LatentHead, query: Tensor, mask: Any, attend: Attend, *, training: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Heads' outputs (B, t, H*D) of the step's last t queries, and probabilities (B, H, t, S)
        where they are formed.

        Args:
            query: before rotation, (B, H, t, D).
            mask: as `attend` takes it.
            attend: attention function for many queries.
            training: keys and values are expanded, which dropout and gradients go through.
        """
        meeting = split_queries if head.decouples else LatentHead.queries
        query = meeting(head, query, self._angles_of(query))
        mask, slots, angles = self.mask(head, query, mask), self._slots_of(query), self.key_angles
        if not training and reads_directly(head, query, mask):
            if self.exact is not None:
                return latents_with_exact(head, query, self.latent, self.exact, slots, mask, angles)
            return read_latents(head, query, self.latent, mask, angles, slots.first_key)
        keys_values = self.keys_values or self.expanded(head).keys_values
        assert keys_values is not None
        if self.exact is not None:
            return expanded_with_exact(
                head, query, keys_values, self.exact, slots, mask, angles, attend
            )
        output, weights = attend(query, *keys_values, mask)
        return output.reshape(*output.shape[:2], -1), weights

    def _slots_of(self, query: Tensor) -> Slots:
        """Those of the last t queries (B, H, t, D)."""
        behind = self.num_new - query.shape[2]
        return self.slots._replace(first_query=self.slots.first_query + behind)

    def _angles_of(self, query: Tensor) -> Angles | None:
        if self.query_angles is None or query.shape[2] == self.num_new:
            return self.query_angles
        cos, sin = (x[:, self.num_new - query.shape[2] :] for x in self.query_angles)
        return cos, sin


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class PoolContext:
    """A context of rows in the pool, which kernels read.

    Attributes:
        step: in which the new rows were written.
        num_new: tokens of the step, T.
        rows, reading: the coded rows, and what kernels have to know of them; None for those of
            CPUs, which know it of their own.
        exact: exact rows, read by torch: those that lie between the first and the last ones of many
            tokens are not in the pool.
        recent, first: exact rows in the pool.
    """

    step: RowStep
    num_new: int
    rows: PagedRows | None = None
    reading: LatentRead | None = None
    exact: ExactView | None = None
    recent: ExactTable | None = None
    first: ExactTable | None = None

    def read(self, head: LatentHead, query: Tensor, angles: Angles | None) -> Tensor:
        """Heads' outputs (B, t, H*D) of the step's last t queries.

        Args:
            query: before rotation, (B, H, t, D).
            angles: of these tokens by position.
        """
        step, num_new = self.step, query.shape[2]
        if self.rows is None or self.reading is None:
            from .cpu_step import read_on_cpu  # with numba, which need not be there

            return read_on_cpu(head, query, step)
        if head.rotary is not None:
            if step.first_new is not None:
                begin = step.first_new + self.num_new - num_new
                angles = head.rotary.window_angles(begin, 0, step.num_slots, query)[0]
            query = head.queries(query, angles)
        frames = step.tables(TOKENS).frames
        beside = self._beside(head, query)
        if (
            beside is None
            and num_new > MAX_DECODE_TOKENS
            and step.ends_together
            and step.first_slots is None
            and expanding_pays(head, self.reading, num_new)
        ):
            return expanded_prefill(head, query, self.rows, frames, step.num_slots)
        return read_pool(
            head,
            query,
            self.rows,
            frames,
            step.context_lens,
            read=self.reading,
            first_slots=step.first_slots,
            beside=beside,
            backend=step.backend,
        )

    def _beside(self, head: LatentHead, query: Tensor) -> tuple[Tensor, Tensor] | None:
        """What rotated queries read of exact rows; None where no token stays exact."""
        step = self.step
        if self.exact is not None:
            return read_beside(head, query, self.exact, step.num_slots)
        if self.recent is None and self.first is None:
            return None
        return read_exact_in_frames(
            head,
            query,
            self.recent,
            self.first,
            step.context_lens,
            step.num_slots,
            step.first_slots,
        )


@dataclass(frozen=True, eq=False, slots=True)
class HandedOn:
    """What a layer leaves in a step for those that read what it stores.

    Attributes:
        head: of the layer that stores.
        context: of its step.
    """

    head: LatentHead
    context: DenseContext | PoolContext

    def to(self, device: torch.device, non_blocking: bool = False) -> HandedOn:
        """Itself; models whose layers lie on several devices move what layers share.

        Raises:
            NotSupportedError: another device than that of the rows.
        """
        where = (
            self.context.latent.device
            if isinstance(self.context, DenseContext)
            else self.context.step.arena.device
        )
        if torch.device(device) != where:
            raise NotSupportedError(
                f"a layer on {device} reads latents of one on {where}; give a device_map that puts "
                "layers which share keys and values on one device"
            )
        return self


Shared = MutableMapping[Any, Any]
"""What transformers carries from layer to layer in a pass of a model that shares keys and values,
by names of its own."""


def hand_on(shared: Shared, layer_idx: int, handed: HandedOn) -> None:
    """Leave what a layer stored for those that read it in this pass."""
    shared[_name(layer_idx)] = (handed,)


def handed_on(shared: Shared | None, layer_idx: int) -> HandedOn:
    """What a layer has left in this pass.

    Raises:
        NotSupportedError: nothing.
    """
    found = None if shared is None else shared.get(_name(layer_idx))
    if found is None:
        raise NotSupportedError(
            f"the latents of layer {layer_idx} were not handed on to a layer that reads them; call "
            "the whole model, in a tested release of transformers"
        )
    return found[0]


def _name(layer_idx: int) -> str:
    """Apart from transformers' own names, kinds of layers or their numbers: a model may run both
    what it was and what it is."""
    return f"latents of layer {layer_idx}"
