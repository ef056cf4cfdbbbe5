"""Gated DeltaNet with keys and queries projected onto r orthonormal directions per key head, after
convolution and normalisation. A projected key is at most of unit length, so that erasing with it
stays a contraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.states.gdn_replay import DeltaRing, gdn_replay_step
from ...kernels.states.gdn_step import gdn_step
from ..scans.delta_rule import delta_scan, delta_scan_with_corrections
from ..scans.passes import Pass, gated_passes
from .mixer import RecurrentMixer, masked
from .pool_step import PooledState

NORM_EPSILON = 1e-6


class GatedDeltaNetMixer(RecurrentMixer):
    """Inputs of a token: key (sum of ranks), value (M, P), log decay (M,), beta (M,)."""

    def mix(self, hidden_states: Tensor, attention_mask: Tensor | None, layer: Any) -> Tensor:
        M, P = self.num_v_heads, self.head_v_dim
        hidden = masked(hidden_states, attention_mask)
        columns, gate, beta, decay = self._projected(hidden)
        query, key, value = self._convolved_parts(columns.transpose(1, 2), layer)
        value = value.unflatten(-1, (M, P))
        doubled = self.form.negative_eigenvalues and self.allow_neg_eigval
        beta = beta.float().sigmoid() * (2.0 if doubled else 1.0)
        log_decay = -self.A_log.float().exp() * nn.functional.softplus(decay.float() + self.dt_bias)
        y = self.advanced((self.packed(key), value, log_decay, beta), query, layer)
        y = y.to(hidden_states.dtype).reshape(-1, P)
        normed = getattr(self, self.form.norm)(y, gate.reshape(-1, P))
        out = normed.view(*hidden_states.shape[:2], M * P)
        return self.output_projection(out)

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
        if self.form.projections == "by_head":
            parts = self.fix_query_key_value_ordering(
                self.in_proj_qkvz(hidden), self.in_proj_ba(hidden)
            )
            query, key, value, gate, beta, decay = parts
            columns = torch.cat([part.flatten(2) for part in (query, key, value)], dim=-1)
            return columns, gate, beta, decay
        if self.form.projections == "joined":
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

    def passes(
        self, inputs: Sequence[Tensor], reads: Tensor, gradient: Tensor | None
    ) -> Iterator[Pass]:
        key, value, log_decay, beta = inputs
        write = key.unflatten(-1, (reads.shape[2], -1))
        nothing = reads[:, :0]
        _, _, values = delta_scan_with_corrections(None, write, value, log_decay, beta, nothing)
        return gated_passes(write, values, log_decay, gradient)

    def step_in_pool(self, state: PooledState, inputs: Sequence[Tensor], read: Tensor) -> Tensor:
        key, value, log_decay, beta = inputs
        key = self.unpacked(key[:, None], self.num_k_heads)[:, 0]
        shared: dict[str, Any] = {"pages": state.pages, "backend": state.step.backend}
        if state.layout.replay_length == 1:
            return gdn_step(key, value, log_decay, beta, read, **state.tables, **shared)
        return gdn_replay_step(
            key,
            value,
            log_decay,
            beta,
            read,
            ring=state.ring(DeltaRing, self.num_k_heads, "writes", "values", "decays", "betas"),
            table=state.step.write_table,
            num_pending=state.step.num_pending,
            **shared,
        )


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + NORM_EPSILON)
