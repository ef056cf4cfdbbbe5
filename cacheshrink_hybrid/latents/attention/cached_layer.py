"""What attention asks of its cache layer; readers get tensors and steps, and know no caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.cache_utils import StaticLayer

from ...codecs.straight_through import has_gradients
from ...errors import KernelUnavailableError, NotSupportedError
from ...pool.memory import RowMemory, RowStep
from ..exact_tokens import ExactMemory, ExactTokens
from ..plan import LatentPlan
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
    first_key: int | Tensor
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
        """Where the next `num_new` tokens will lie; to be asked before `append`.

        Raises:
            NotSupportedError: the layer holds keys and values.
        """
        if self.cache is None or self.layer_idx >= len(self.cache.layers):
            return Slots(0, 0, num_new)  # a bare cache makes its layers as they come
        layer = self.cache.layers[self.layer_idx]
        values = vars(layer).get("values")  # pooled layers would read their history to answer
        if isinstance(values, Tensor) and values.shape[-1]:
            raise NotSupportedError(
                f"layer {self.layer_idx} of the cache holds keys and values, as prefix tuning or a "
                "source model writes them, and this model reads latents; give it a cache that it "
                "filled itself, and tune prompts (PromptTuningConfig) or adapters instead of "
                "prefixes"
            )
        num_keys, first_key = layer.get_mask_sizes(num_new)
        first_query = layer.get_seq_length() + 0  # a copy: update() counts in place
        return Slots(first_query, first_key, num_keys)

    def append(self, stored: Tensor) -> Tensor:
        """Stores what stands for new tokens (B, T, width) as the keys of one head, and returns what
        stands for all slots that are read, (B, S, width)."""
        if self.cache is None:
            return stored
        keys = stored[:, None]
        return self.cache.update(keys, keys[..., :0], self.layer_idx)[0][:, 0]

    def exact_tokens(self, plan: LatentPlan, first_new: int | Tensor) -> ExactTokens:
        """The exact copies of this layer.

        Args:
            first_new: slot of the first new token.

        Raises:
            NotSupportedError: for caches that cannot keep them.
        """
        if self.cache is None:
            return ExactTokens(plan.exact_sinks, plan.exact_window)
        if not isinstance(self.cache, ExactMemory):
            raise NotSupportedError(
                f"a {type(self.cache).__name__} cannot keep exact_sinks and exact_window; use "
                "make_cache(model), which is also what generate() makes by default"
            )
        copies = self.cache.exact_tokens(self.layer_idx, plan.exact_sinks, plan.exact_window)
        assert copies.num_tokens == first_new, "rows and copies are of the same tokens"
        return copies

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
            KernelUnavailableError: the cache's backend is `triton`, and that cannot run here, or
                kernels cannot take this step.
        """
        cache = self.cache
        if not isinstance(cache, RowMemory) or cache.backend == "torch":
            return None
        reason, first_slots = why_not(head, hidden), None
        if reason is None and not cache.get_seq_length(self.layer_idx):
            return None  # without history there is nothing to read
        if reason is None and has_gradients(module, hidden):
            reason = "kernels have no backward pass; decode within torch.no_grad()"
        batch, num_new = hidden.shape[:2]
        if reason is None and not cache.slots_are_positions:
            num_keys, first_key = cache.get_mask_sizes(num_new, self.layer_idx)
            reason, first_slots = first_visible(
                mask, batch, num_new, num_keys, first_key, head.window
            )
        if reason is not None:
            if cache.backend == "triton":
                raise KernelUnavailableError(
                    f"layer {self.layer_idx} is not read by kernels: {reason}"
                )
            return None
        return cache.row_step(self.layer_idx, batch, num_new, first_slots)
