"""A layer's part in a forward pass of vLLM: its rows are written to blocks, and read there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from vllm.forward_context import get_forward_context

from ..errors import KernelUnavailableError
from ..kernels.backend import Backend
from ..latents.attention.kernel_view import plan_layout, row_layout, why_not
from ..latents.plan import LatentPlan
from .cache_layers import CachedRows, ExactRows, TokenRows
from .memory_check import check_memory
from .own_heads import SplitHead
from .paged_attention import NewTokens, attend_paged


class LatentRows:
    """The rows of one layer.

    Args:
        layer: its number.
        heads: its heads, those of this process among them.
        like: a tensor of the activations' type, on their device.

    Attributes:
        tokens, exact: where the rows of all layers lie; given by `share_blocks`.
    """

    tokens: TokenRows
    exact: ExactRows | None = None

    def __init__(self, layer: int, heads: SplitHead, like: Tensor) -> None:
        self.layer, self.heads, self.reader, self.like = layer, heads, heads.own, like

    def check(self) -> None:
        """Raise `KernelUnavailableError` if these rows are not read where they lie; to be called
        when weights are there."""
        reason = why_not(self.reader, self.like)
        if reason is not None:
            raise KernelUnavailableError(
                f"layer {self.layer} is not read in vLLM's blocks: {reason}; use "
                "cacheshrink-hybrid serve"
            )

    def attend(self, new: NewTokens) -> Tensor:
        """Heads' outputs (N, H*D) in the forward pass that vLLM runs, see `attend_paged`; zeros
        where it only measures memory, and for tokens behind those of requests."""
        query = new.query
        output = query.new_zeros(query.shape[0], query.shape[1] * query.shape[2])
        steps = get_forward_context().attn_metadata
        if steps is None:
            return output
        step, exact = steps[self.tokens.name], None
        if self.reader.plan.keeps_exact:
            assert self.exact is not None
            exact = self.exact.blocks(self.layer), steps[self.exact.name]
        count = step.num_tokens
        output[:count] = attend_paged(
            self.heads,
            new.between(0, count),
            self.tokens.blocks(self.layer),
            step,
            exact,
            backend=self.backend,
        )
        return output

    @property
    def backend(self) -> Backend:
        """Who reads and writes rows."""
        return "triton" if self.like.device.type == "cuda" else "torch"

    def check_memory(self) -> None:
        """Raise `KernelUnavailableError` if rows are not found in the memory that was allocated."""
        exact = None
        if self.reader.plan.keeps_exact:
            assert self.exact is not None
            exact = self.exact.blocks(self.layer)
        check_memory(
            f"layer {self.layer}",
            self.heads,
            self.like,
            self.tokens.blocks(self.layer),
            exact,
            backend=self.backend,
        )


def share_blocks(
    layers: Sequence[LatentRows], prefix: str, elsewhere: Sequence[Sequence[LatentPlan]] = ()
) -> list[CachedRows]:
    """Give the layers of a process their places in blocks; returns what vLLM is to allocate.

    Args:
        prefix: of a layer, as vLLM names it.
        elsewhere: plans of the layers of each process that has others, of as many of their heads.
    """
    dtype = layers[0].like.dtype
    others = [{x.layer_ids[0]: plan_layout(x, dtype).row_bytes for x in of} for of in elsewhere]
    tokens = TokenRows(
        f"{prefix}.rows", {x.layer: row_layout(x.reader, dtype) for x in layers}, others
    )
    found: list[CachedRows] = [tokens]
    exact, layouts = None, {}
    for x in layers:
        if x.reader.exact_codec is not None:
            layouts[x.layer] = x.reader.exact_codec.layout
    plans = [x.reader.plan for x in layers] + [x for of in elsewhere for x in of]
    if any(plan.keeps_exact for plan in plans):
        exact = ExactRows(
            f"{prefix}.exact_rows",
            layouts,
            tokens,
            [{x.layer_ids[0]: x.exact_row_bytes for x in of if x.keeps_exact} for of in elsewhere],
            num_sinks=max(plan.exact_sinks for plan in plans),
            window=max(plan.exact_window for plan in plans),
        )
        found.append(exact)
    for x in layers:
        x.tokens, x.exact = tokens, exact

    def check() -> None:
        if all(cached.is_bound for cached in found):
            for x in layers:
                x.check_memory()

    for cached in found:
        cached.when_bound = check
    return found
