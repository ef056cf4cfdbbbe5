"""Keys and values of all heads that one cached latent stands for: DeepSeek's attention (MLA).

Such a model caches, for all heads together, a latent c (C) and a rotary key r (Dr). Of a query
[r_q; n] of head h, with the projections W_k (Dn, C) and W_v (Dv, C) of that head,

    score  = r_q . rotate(r) + n . W_k c = r_q . rotate(r) + (W_k^T n) . c
    output = W_v sum p c

So r is the key of one head that all queries share, c its value, and the value is a key as well.
Few queries are absorbed, as on the right; for many, W_k c and W_v c are formed once.

Reference: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .maps import HeadMap


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Expansion:
    """From cached latents to keys and values of H heads.

    Attributes:
        up: [W_k; W_v] of every head, from C channels to H heads of Dn + Dv.
        qk_nope_head_dim: Dn.
        multiplier: constant that latents are multiplied with before.
    """

    up: HeadMap
    qk_nope_head_dim: int
    multiplier: float = 1.0

    def absorbed(self, query: Tensor) -> Tensor:
        """Queries (B, H, T, Dn) as they meet latents, (B, H, T, C). What a bias of keys adds is the
        same for all tokens, so that no softmax sees it."""
        weight, _ = self.up.matrix(query)
        return torch.matmul(query, weight[:, : self.qk_nope_head_dim]) * self.multiplier

    def outputs(self, mixed: Tensor) -> Tensor:
        """Heads' outputs (B, T, H*Dv) of latents (B, T, H*C) mixed with weights that add up to
        one."""
        weight, bias = self.up.matrix(mixed)
        heads = (mixed * self.multiplier).unflatten(-1, (self.up.num_heads, -1))
        values = torch.einsum("bthc,hvc->bthv", heads, weight[:, self.qk_nope_head_dim :])
        if bias is not None:
            values = values + bias.view(self.up.num_heads, -1)[:, self.qk_nope_head_dim :]
        return values.flatten(2)

    def expanded(self, keys: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, S, Dr + Dn) and values (B, H, S, Dv) of rotary keys (B, 1, S, Dr), rotated,
        and latents (B, 1, S, C)."""
        heads = self.up(latents[:, 0] * self.multiplier)
        heads = heads.unflatten(-1, (self.up.num_heads, -1)).transpose(1, 2)
        still, values = heads.tensor_split((self.qk_nope_head_dim,), dim=-1)
        shared = keys.expand(-1, self.up.num_heads, -1, -1)
        return torch.cat([shared, still], dim=-1), values
