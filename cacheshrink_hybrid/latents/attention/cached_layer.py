"""What attention asks of its cache layer; readers get tensors and steps, and know no caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import StaticLayer

from ...codecs.straight_through import has_gradients
from ...errors import KernelUnavailableError, NotSupportedError
from ...kernels.backend import REFUSING, Implementation, implementation_on
from ...pool.memory import ExactMemory, ExactRows, RowMemory, RowStep
from ..exact_tokens import ExactView
from .dense_read import MAX_DECODE_TOKENS
from .head import LatentHead
from .kernel_view import why_not
from .left_padding import first_visible


class Slots(NamedTuple):
    """Where new tokens and what they read lie in a cache.

    Attributes:
        first_query: slot of the first new token; a tensor where a static cache counts on the
            device.
        first_key: slot of the first key.
        num_keys: slots that are read, those of the new tokens included.
    """

    first_query: int | Tensor
    first_key: int
    num_keys: int


@dataclass(frozen=True, eq=False, slots=True)
class CachedLayer:
    """One layer of a cache; or, without a cache, nothing but the new tokens.

    Attributes:
        cache: of transformers or of ours, or None.
        layer_idx: of the layer in it.
    """

    cache: Any
    layer_idx: int

    @property
    def is_static(self) -> bool:
        """Whether it gives out all its slots, also those that nothing was written to yet."""
        return self.cache is not None and isinstance(self.cache.layers[self.layer_idx], StaticLayer)

    def slots(self, num_new: int) -> Slots:
        """Where the next `num_new` tokens will lie; to be asked before `append`."""
        if self.cache is None or self.layer_idx >= len(self.cache.layers):
            return Slots(0, 0, num_new)  # a bare cache makes its layers as they come
        layer = self.cache.layers[self.layer_idx]
        num_keys, first_key = layer.get_mask_sizes(num_new)
        first_query = layer.get_seq_length() + 0  # a copy: update() counts in place
        return Slots(first_query, first_key, num_keys)

    def append(self, stored: Tensor, exact: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Stores what stands for new tokens (B, T, width) as the keys of one head, and returns what
        stands for all slots that are read, (B, S, width).

        Args:
            exact: exact rows of the new tokens, (B, T, bytes), which caches that know nothing of
                them keep of all tokens, as the values of that head.

        Returns:
            Those of all slots that are read, (B, S, width) and (B, S, bytes); the latter of no
            bytes where the cache keeps them elsewhere.

        Raises:
            NotSupportedError: the layer holds values of another width.
        """
        keys = stored[:, None]
        values = keys[..., :0] if exact is None or self.keeps_exact else exact[:, None]
        if self.cache is None:
            return stored, values[:, 0]
        self._check_values(values.shape[-1])
        found = self.cache.update(keys, values, self.layer_idx)
        return found[0][:, 0], found[1][:, 0]

    @property
    def keeps_exact(self) -> bool:
        """Whether the cache keeps the exact rows of some tokens by itself."""
        return isinstance(self.cache, ExactMemory)

    def coding_on(self, device: torch.device) -> Implementation:
        """Who codes rows on a device before they are appended: as the cache's backend says, and
        where there is none as `auto` does."""
        backend = self.cache.backend if isinstance(self.cache, RowMemory) else "auto"
        return implementation_on(backend, device)

    def _check_values(self, width: int) -> None:
        if self.layer_idx >= len(self.cache.layers):
            return
        values = vars(self.cache.layers[self.layer_idx]).get("values")  # not those of pooled layers
        held = values.shape[-1] if isinstance(values, Tensor) and values.ndim > 1 else width
        if held != width:
            raise NotSupportedError(
                f"layer {self.layer_idx} of the cache holds keys and values, as prefix tuning or a "
                "source model writes them, and this model reads latents; give it a cache that it "
                "filled itself, and tune prompts (PromptTuningConfig) or adapters instead of "
                "prefixes"
            )

    def exact_view(
        self,
        head: LatentHead,
        channels: Tensor,
        rows: Tensor,
        first: Tensor,
        slots: Slots,
        held: Tensor | None = None,
    ) -> ExactView:
        """Exact keys and values of this layer that a step's queries may read, after `append`.

        Args:
            head: that reads them.
            channels: of the new tokens, from `LatentHead.exact_channels`.
            rows: their exact rows, (B, T, bytes).
            first: first slot of each sequence that is not padding, (B or 1,); beyond the last slot
                where there is none yet.
            slots: of the new tokens and of what they read.
            held: exact rows of all of these, from `append`, unless the cache keeps them itself.
        """
        num_sinks = head.plan.exact_sinks
        if self.keeps_exact:
            found = self.cache.exact_rows(
                self.layer_idx, rows, first, num_sinks=num_sinks, window=head.plan.exact_window
            )
        else:
            assert held is not None
            at = first[:, None] + torch.arange(num_sinks, device=first.device) - slots.first_key
            at = at.clamp(0, held.shape[1] - 1)[..., None].expand(len(held), -1, held.shape[2])
            found = ExactRows(held.gather(1, at), held, slots.first_key)
        return head.exact_view(channels, found, first, slots.first_query)

    def row_step(
        self, head: LatentHead, module: nn.Module, hidden: Tensor, mask: Any
    ) -> RowStep | None:
        """The step of this layer by kernels, or None where torch reads its history.

        Args:
            head: that reads it.
            module: with the weights that may ask for gradients.
            hidden: the module's input, (B, T, E).
            mask: as the attention function takes it.

        Raises:
            KernelUnavailableError: the cache's backend is `triton` or `cpu`, and that cannot run
                here, or kernels cannot take this step.
        """
        cache = self.cache
        if not isinstance(cache, RowMemory) or cache.backend == "torch":
            return None
        if _is_for_torch(cache, hidden):
            return None
        reason, first_slots = why_not(head, hidden), None
        if reason is None and not cache.get_seq_length(self.layer_idx):
            return None  # without history there is nothing to read
        if reason is None and has_gradients(module, hidden):
            reason = "kernels have no backward pass; decode within torch.no_grad()"
        batch, num_new = hidden.shape[:2]
        if reason is None and mask is not None and not cache.slots_are_positions:
            num_keys, first_key = cache.get_mask_sizes(num_new, self.layer_idx)
            reason, first_slots = first_visible(
                mask, batch, num_new, num_keys, first_key, head.window
            )
        if reason is not None:
            if cache.backend in REFUSING:
                raise KernelUnavailableError(
                    f"layer {self.layer_idx} is not read by kernels: {reason}"
                )
            return None
        return cache.row_step(self.layer_idx, batch, num_new, first_slots)


def _is_for_torch(cache: RowMemory, hidden: Tensor) -> bool:
    """Whether a pass on inputs (B, T, E) is none that kernels of CPUs are made for: within a graph;
    of many tokens, whose keys and values torch expands once; or, with `auto`, by eager attention,
    of which probabilities may be asked for. The engine decides that by itself."""
    if cache.slots_are_positions:
        return False
    compiling = torch.compiler.is_compiling()
    eager = cache.backend == "auto" and cache.wants_probabilities
    if not (compiling or eager) and hidden.shape[1] <= MAX_DECODE_TOKENS:
        return False
    if hidden.device.type != "cpu":
        return False
    return compiling or implementation_on(cache.backend, hidden.device) == "cpu"
