"""Gated DeltaNet with keys and queries projected onto r orthonormal directions per key head, after
convolution and normalisation. A projected key is at most of unit length, so that erasing with it
stays a contraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..scans.delta_rule import delta_scan
from .mixer import RecurrentMixer, masked
from .pool_step import PooledState

NORM_EPSILON = 1e-6


class GatedDeltaNetMixer(RecurrentMixer):
    """Inputs of a token: key (sum of ranks), value (M, P), log decay (M,), beta (M,)."""

    exact_inputs = (2, 3)

    def mix(self, hidden_states: Tensor, attention_mask: Tensor | None, layer: Any) -> Tensor:
        M, P = self.num_v_heads, self.head_v_dim
        hidden = masked(hidden_states, attention_mask)
        columns, gate, beta, decay = self._projected(hidden)
        query, key, value = self._convolved_parts(columns.transpose(1, 2), layer)
        value = value.unflatten(-1, (M, P))
        beta = beta.float().sigmoid() * (2.0 if getattr(self, "allow_neg_eigval", False) else 1.0)
        log_decay = -self.A_log.float().exp() * nn.functional.softplus(decay.float() + self.dt_bias)
        y = self.advanced((self.packed(key), value, log_decay, beta), query, layer)
        y = y.to(hidden_states.dtype).reshape(-1, P)
        norm = self.o_norm if hasattr(self, "o_norm") else self.norm
        out = norm(y, gate.reshape(-1, P)).view(*hidden_states.shape[:2], M * P)
        return (self.o_proj if hasattr(self, "o_proj") else self.out_proj)(out)

    def _convolved_parts(self, columns: Tensor, layer: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q and k (B, T, G, r) and v (B, T, M * P), float32, of columns (B, C, T) before the
        convolution."""
        G, N = self.num_k_heads, self.head_k_dim
        if isinstance(layer, PooledState):
            order = ("read", "write", "values")
            values, key, query = layer.projected(
                columns, order, groups=G, group_size=N, normalize=True
            )
            assert key is not None and query is not None
            return query * N**-0.5, key, values.float()
        convolved = self.convolved(columns, layer).transpose(1, 2).float()
        query, key = convolved[..., : 2 * G * N].unflatten(-1, (2, G, N)).unbind(2)
        query = self.narrowed(_unit(query) * N**-0.5, self.state_read)
        return query, self.narrowed(_unit(key), self.state_write), convolved[..., 2 * G * N :]

    def _projected(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[q | k | v] columns, gate, beta before its sigmoid, decay before its softplus."""
        if hasattr(self, "in_proj_qkvz"):  # Qwen3-Next, grouped by key head
            parts = self.fix_query_key_value_ordering(
                self.in_proj_qkvz(hidden), self.in_proj_ba(hidden)
            )
            query, key, value, gate, beta, decay = parts
            columns = torch.cat([part.flatten(2) for part in (query, key, value)], dim=-1)
            return columns, gate, beta, decay
        if hasattr(self, "in_proj_qkv"):  # Qwen3.5
            return (
                self.in_proj_qkv(hidden),
                self.in_proj_z(hidden),
                self.in_proj_b(hidden),
                self.in_proj_a(hidden),
            )
        columns = [self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)]
        gate, beta, decay = self.g_proj(hidden), self.b_proj(hidden), self.a_proj(hidden)
        return torch.cat(columns, dim=-1), gate, beta, decay

    def scan(
        self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor
    ) -> tuple[Tensor, Tensor]:
        key, value, log_decay, beta = inputs
        key = self.unpacked(key, self.num_k_heads)
        return delta_scan(state, key, value, log_decay, beta, reads)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + NORM_EPSILON)
