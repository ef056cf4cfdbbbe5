"""A chunk of a prompt over history in the pool, by each way there is: the prefill group of
`bench_kernels`.

The layer is a real one (`LatentAttention` with random weights), and what is timed is what a step
does with it: `latent_prefill` on absorbed queries or with rebuilt keys, and expanded blocks of keys
and values that torch's attention meets, merged by their log-sum-exp. Beside them stands torch's
attention over the uncompressed keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.latents.attention.head import LatentHead
from cacheshrink_hybrid.latents.attention.kernel_view import latent_read, row_layout
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.latents.attention.parts import AttentionParts, Projection
from cacheshrink_hybrid.latents.attention.pool_read import read_pool
from cacheshrink_hybrid.latents.attention.prefill import (
    expanded_operations,
    expanded_prefill,
    expanding_pays,
    latent_operations,
)
from cacheshrink_hybrid.latents.attention.slot_rotary import SlotRotary
from cacheshrink_hybrid.latents.plan import ChannelRun, LatentPlan

from .kernel_workloads import Workload, latent_rows


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """`num_new` tokens of each of `batch` sequences behind `history` tokens.

    Attributes:
        heads, key_heads, head_dim: H, J and D.
    """

    batch: int
    history: int
    num_new: int
    heads: int
    key_heads: int
    head_dim: int
    device: torch.device
    dtype: torch.dtype = torch.bfloat16

    @property
    def num_slots(self) -> int:
        return self.history + self.num_new

    @property
    def pairs(self) -> float:
        """Slots that a query sees on average, times the sequences."""
        return self.batch * (self.history + (self.num_new + 1) / 2)

    @property
    def group(self) -> str:
        return f"prefill B={self.batch} L={self.history} T={self.num_new}"

    def query(self) -> Tensor:
        """Rotated queries, (B, H, T, D)."""
        shape = (self.batch, self.heads, self.num_new, self.head_dim)
        return torch.randn(shape, device=self.device).to(self.dtype)

    def workload(
        self, name: str, num_bytes: int, num_operations: float, run: Callable[[], object], **sizes
    ) -> Workload:
        shape = {"batch": self.batch, "context": self.history, "tokens": self.num_new}
        return Workload(
            f"prefill {name} {self.group.removeprefix('prefill ')}",
            self.group,
            num_bytes,
            run,
            sizes={**shape, **sizes},
            num_operations=num_operations,
        )


def latent_head(chunk: Chunk, *, rank: int, bits: int, rotated: bool) -> LatentHead:
    """Of a layer with random weights that stores `rank` channels of `bits` bits, joint for keys and
    values; `rotated` ones rebuild their keys, the others absorb queries."""
    H, J, D, width = chunk.heads, chunk.key_heads, chunk.head_dim, 16
    config = LlamaConfig(
        hidden_size=width, num_attention_heads=H, num_key_value_heads=J, head_dim=D
    )
    source: Any = nn.Module()
    source.config = config
    rotary = SlotRotary(LlamaRotaryEmbedding(config).to(chunk.device), apply_rotary_pos_emb)

    def projection(name: str, heads: int) -> Projection:
        return Projection(name, nn.Linear(width, heads * D, device=chunk.device, dtype=chunk.dtype))

    parts = AttentionParts(
        sources={0: source},
        num_attention_heads=H,
        num_key_value_heads=J,
        head_dim=D,
        query=projection("q_proj", H),
        key=projection("k_proj", J),
        value=projection("v_proj", J),
        output=nn.Linear(H * D, width, device=chunk.device, dtype=chunk.dtype),
        scaling=D**-0.5,
        rotary=rotary if rotated else None,
    )
    plan = LatentPlan(
        layer_ids=(0,),
        method="joint",
        kv_lora_rank=rank,
        key_rank=rank,
        value_rank=rank,
        read_mode="reconstruct" if rotated else "absorb",
        runs=(ChannelRun(channels=rank, bits=bits),),
        row_format=None if bits == 16 else RowFormat(alignment=16),
    )
    layer = LatentAttention(parts, plan)
    with torch.no_grad():
        for linear in (layer.k_b_proj, layer.v_b_proj):
            nn.init.normal_(linear.weight, std=rank**-0.5)
            nn.init.normal_(linear.bias)
    return layer.requires_grad_(False).eval().head


def chunk_over_latents(
    chunk: Chunk, *, rank: int, bits: int, rotated: bool, backend: Backend = "auto"
) -> list[Workload]:
    """The same chunk over the same rows, met where they lie and expanded."""
    head = latent_head(chunk, rank=rank, bits=bits, rotated=rotated)
    query = chunk.query()
    layout = row_layout(head, chunk.dtype)
    rows, table, lens = latent_rows(layout, chunk.batch, chunk.num_slots, 64, chunk.device)
    read = latent_read(head, chunk.num_slots, query)
    H, J, D = chunk.heads, chunk.key_heads, chunk.head_dim
    moved = chunk.batch * chunk.num_slots * layout.row_bytes + 4 * table.numel() + 2 * query.nbytes
    # Blocks of keys and values are written and read once.
    blocks = 2 * 2 * chunk.batch * chunk.num_slots * J * D * chunk.dtype.itemsize
    pays = expanding_pays(head, read, chunk.num_new)

    def met() -> object:
        return read_pool(head, query, rows, table, lens, read=read, backend=backend)

    def expanded() -> object:
        return expanded_prefill(head, query, rows, table, chunk.num_slots)

    kind = f"{'rebuilt' if rotated else 'absorbed'} {bits}"
    sizes = {"codec": str(bits), "rank": rank, "heads": H, "kind": kind}
    return [
        chunk.workload(
            f"paged {kind} R={rank}",
            moved,
            chunk.pairs * latent_operations(head, read, chunk.num_new),
            met,
            **sizes,
            chosen=not pays,
        ),
        chunk.workload(
            f"expanded {kind} R={rank}",
            moved + blocks,
            chunk.pairs * expanded_operations(head, read, chunk.num_new),
            expanded,
            **sizes,
            chosen=pays,
        ),
    ]


def chunk_over_full(chunk: Chunk, *, plain: bool = False) -> Workload:
    """torch's attention over uncompressed keys and values, by FlashAttention on a GPU; `plain` goes
    through a mask and a matrix of scores."""
    query = chunk.query()
    shape = (2, chunk.batch, chunk.key_heads, chunk.num_slots, chunk.head_dim)
    keys, values = torch.randn(shape, device=chunk.device).to(chunk.dtype)
    flash = chunk.device.type == "cuda" and not plain
    backends = [SDPBackend.FLASH_ATTENTION if flash else SDPBackend.MATH]

    def run() -> object:
        with sdpa_kernel(backends):
            return nn.functional.scaled_dot_product_attention(
                query,
                keys,
                values,
                attn_mask=causal_lower_right(chunk.num_new, chunk.num_slots),
                enable_gqa=True,
            )

    return chunk.workload(
        f"SDPA full K/V {chunk.key_heads}x{chunk.head_dim}",
        keys.nbytes + values.nbytes + 2 * query.nbytes,
        4 * chunk.pairs * chunk.num_new * chunk.heads * chunk.head_dim,
        run,
        heads=chunk.heads,
    )
