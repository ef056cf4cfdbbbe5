"""Mamba-1 with some of its state channels. Every element has a decay of its own, so channels can be
left out but not mixed; what reads the kept ones is refitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .recurrent_mixer import RecurrentMixer, masked
from .selective_scan import selective_scan


class Mamba1Mixer(RecurrentMixer):
    """Inputs of a token: x (M, P), dt (M, P), B (sum of ranks); it reads with C (M, r)."""

    @property
    def num_scan_heads(self) -> int:
        """M: Zamba runs several scans side by side, the others one."""
        return getattr(self, "n_mamba_heads", 1)

    def mix(self, hidden_states: Tensor, attention_mask: Tensor | None, layer: Any) -> Tensor:
        M = self.num_scan_heads
        rank, N = self.time_step_rank, self.ssm_state_size
        projected = self.in_proj(masked(hidden_states, attention_mask))
        if hasattr(self, "n_mamba_heads"):  # Zamba: [x | gate] channel by channel
            x, gate = projected.unflatten(-1, (-1, 2)).unbind(-1)
        else:
            x, gate = projected.chunk(2, dim=-1)
        x = self.convolved(x.transpose(1, 2), layer).transpose(1, 2)
        x = masked(x, attention_mask).unflatten(-1, (M, -1))
        step, write, read = self._selected(x).split([rank, N, N], dim=-1)
        if hasattr(self, "b_layernorm"):  # Jamba, Falcon-Mamba
            step = self.dt_layernorm(step)
            write, read = self.b_layernorm(write), self.c_layernorm(read)
        dt = nn.functional.softplus(self._step_sizes(step).float())
        x, write, read = x.float(), write.float(), read.float()
        write = self.narrowed(write, self.state_write)
        read = self.narrowed(read, self.state_read)
        y = self.advanced((x, dt, self.packed(write)), read, layer)
        y = (y + x * self.D.float().view(M, -1)).flatten(2) * nn.functional.silu(gate.float())
        return self.out_proj(y.to(hidden_states.dtype))

    def _selected(self, x: Tensor) -> Tensor:
        """[dt | B | C] of x (B, T, M, P), (B, T, M, rank + 2 N)."""
        if hasattr(self, "x_proj_weight"):
            return torch.einsum("btmp,mkp->btmk", x, self.x_proj_weight)
        return self.x_proj(x)

    def _step_sizes(self, step: Tensor) -> Tensor:
        """Step sizes before the softplus, (B, T, M, P)."""
        if hasattr(self, "dt_proj_weight"):
            steps = torch.einsum("btmk,mpk->btmp", step, self.dt_proj_weight)
            return steps.float() + self.dt_proj_bias.float()
        steps = nn.functional.linear(step, self.dt_proj.weight).float()
        return steps if self.dt_proj.bias is None else steps + self.dt_proj.bias.float()

    def decay_rates(self) -> Tensor:
        """A of the stored channels, (M, P, r)."""
        A = -torch.exp(self.A_log.float()).view(self.num_scan_heads, -1, self.ssm_state_size)
        plan = self.state_plan
        if plan is None or plan.channels is None:
            return A
        wide = A.new_zeros(*A.shape[:2], plan.width)
        for head, channels in enumerate(plan.channels):
            wide[head, :, : len(channels)] = A[head][:, list(channels)]
        return wide

    def scan(
        self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, dt, write = inputs
        write = self.unpacked(write, self.num_scan_heads)
        return selective_scan(state, x, dt, self.decay_rates(), write, reads)
