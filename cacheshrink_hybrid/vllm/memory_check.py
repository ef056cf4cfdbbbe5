"""A trial of a layer's kernels on the memory that vLLM really allocated, before it serves.

Rows of drawn tokens are written to the first, the middle and the last blocks and read there, as in
a forward pass; the same is done by torch in a few blocks of their own. Both have to find the same
rows and come to the same outputs. What goes wrong with addresses, as when byte offsets pass 2^31 in
a large cache, shows here instead of in answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import KernelUnavailableError
from ..kernels.backend import Backend
from ..kernels.latents.paged_rows import PagedRows
from ..kernels.latents.row_reference import gather_latents
from ..latents.attention.head import LatentHead
from .own_heads import SplitHead
from .paged_attention import NewTokens, PagedStep, attend_paged

TOLERANCE = 0.05
"""Largest difference, as a share of the norm: rounding, and gains of rows that are as good, stay
below; rows at another place differ by about 1."""


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """Some blocks of a layer's rows.

    Attributes:
        rows: all of them.
        places: numbers of these, in the order of a request's tokens.
    """

    rows: PagedRows
    places: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.places) * self.rows.frame_tokens

    @property
    def table(self) -> Tensor:
        """(1, blocks) int32."""
        return torch.tensor([self.places], dtype=torch.int32, device=self.rows.arena.device)

    def slots(self, positions: Tensor) -> Tensor:
        """Where tokens at `positions` (N,) lie, (N,) int64."""
        size = self.rows.frame_tokens
        return self.table[0].long()[positions // size] * size + positions % size

    def apart(self) -> Blocks:
        """As many blocks in memory of their own."""
        room = torch.zeros_like(self.rows.arena[: len(self.places) * self.rows.frame_bytes])
        return Blocks(replace(self.rows, arena=room), list(range(len(self.places))))

    def clear(self) -> None:
        """Fill the blocks with zeros."""
        size = self.rows.frame_bytes
        for place in self.places:
            self.rows.arena[place * size : (place + 1) * size] = 0


def check_memory(
    name: str,
    heads: SplitHead,
    like: Tensor,
    rows: PagedRows,
    exact: PagedRows | None,
    *,
    backend: Backend,
) -> None:
    """Raise `KernelUnavailableError` if rows of a layer are not found where they were written.

    Args:
        name: of the layer.
        heads: the layer's.
        like: a tensor of the activations' type, on their device.
        rows, exact: the layer's in the whole memory, which nobody uses yet; blocks that are used
            hold zeros afterwards.
        backend: runs the kernels.
    """
    last = rows.num_frames - 1
    coded = Blocks(rows, sorted({0, last // 2, last}))
    without = SplitHead(_without_exact(heads.whole), _without_exact(heads.own), heads.share)
    _try_out(name, without, like, coded, None, coded.num_tokens, backend)
    if exact is None:
        return
    others = {1, last // 2 + 1, last - 1}.difference(coded.places)
    beside = Blocks(exact, sorted(place for place in others if 0 <= place <= last))
    if beside.places:
        num_tokens = min(coded.num_tokens, beside.num_tokens)
        _try_out(name, heads, like, coded, beside, num_tokens, backend)


def _without_exact(head: LatentHead) -> LatentHead:
    """A head that reads coded rows of all tokens."""
    plan = replace(head.plan, exact_sinks=0, exact_window=0, exact_channels=0)
    return replace(head, plan=plan, exact_codec=None)


@torch.no_grad()
def _try_out(
    name: str,
    heads: SplitHead,
    like: Tensor,
    coded: Blocks,
    exact: Blocks | None,
    num_tokens: int,
    backend: Backend,
) -> None:
    """Compare what one request of so many tokens reads there, and in memory of its own."""
    new = _drawn_tokens(heads, like, num_tokens)
    apart = coded.apart(), None if exact is None else exact.apart()
    found = _run(heads, new, coded, exact, backend)
    due = _run(heads, new, *apart, "torch")
    kept = [("coded rows", coded, apart[0])]
    if exact is not None and apart[1] is not None:
        kept.append(("exact rows", exact, apart[1]))
    pairs = [("outputs", found, due)]
    for kind, blocks, few in kept:
        rows = [gather_latents(x.rows, x.table, num_tokens)[0] for x in (blocks, few)]
        pairs.append((kind, rows[0], rows[1]))
        blocks.clear()
    for kind, there, own in pairs:
        size = own.float().norm().clamp_min(1e-20)
        difference = float((there.float() - own.float()).norm() / size)
        if not difference < TOLERANCE:
            raise KernelUnavailableError(
                f"{kind} of {name} in blocks {coded.places} of {coded.rows.num_frames} differ by "
                f"{difference:.2g} from those in memory of their own, where less than {TOLERANCE} "
                "is due; give vLLM less memory (--kv-cache-memory-bytes), and report this"
            )


def _drawn_tokens(heads: SplitHead, like: Tensor, num_tokens: int) -> NewTokens:
    """Tokens whose queries look at all others about as much."""
    whole, own = heads.whole, heads.own
    generator = torch.Generator(like.device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=like.device).to(like.dtype)

    query = drawn(num_tokens, own.num_attention_heads, own.head_dim)
    latent, source = drawn(num_tokens, whole.plan.kv_lora_rank), None
    if whole.stores_rotated:
        source = drawn(num_tokens, whole.width)
        latent = whole.latent_in_block(source[None], 0)[0]
    angles = None if own.rotary is None else own.rotary.angles(num_tokens, query)
    asked = own.queries(query.transpose(0, 1)[None], angles)
    products = (
        own.products(asked, own.keys(heads.own_channels(latent)[None], angles, 0)) * own.scale
    )
    exact = drawn(num_tokens, own.width) if own.exact_codec is not None else None
    return NewTokens(
        query=query / products.float().std().clamp_min(1).to(query.dtype),
        latent=None if whole.stores_rotated else latent,
        key_value=source,
        exact=exact,
        positions=torch.arange(num_tokens, device=like.device),
    )


def _run(
    heads: SplitHead,
    new: NewTokens,
    coded: Blocks,
    exact: Blocks | None,
    backend: Backend,
) -> Tensor:
    """Outputs (N, H*D) of tokens that are fed as a prompt, and a last one behind it."""
    count, found = len(new.positions), []
    for start, end in ((0, count - 1), (count - 1, count)):
        if start == end:
            continue
        part = new.between(start, end)
        steps = [
            PagedStep(
                query_lens=(end - start,),
                context_lens=torch.tensor([end], dtype=torch.int32, device=part.query.device),
                num_slots=end,
                block_table=blocks.table,
                slot_mapping=blocks.slots(part.positions),
            )
            for blocks in (coded, exact)
            if blocks is not None
        ]
        beside = None if exact is None else (exact.rows, steps[1])
        found.append(attend_paged(heads, part, coded.rows, steps[0], beside, backend=backend))
    return torch.cat(found)
