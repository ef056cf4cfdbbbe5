"""Mamba-2 with r state channels per group: what is written and read is projected after the
convolution, and everything between runs at width r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .recurrent_mixer import RecurrentMixer, masked
from .ssd import ssd_scan


class Mamba2Mixer(RecurrentMixer):
    """Inputs of a token: x (M, P), dt (M,), B (sum of ranks); it reads with C (G, r)."""

    exact_inputs = (1,)

    def mix(self, hidden_states: Tensor, attention_mask: Tensor | None, layer: Any) -> Tensor:
        M, P, G, N = self.num_heads, self.head_dim, self.n_groups, self.ssm_state_size
        hidden = masked(hidden_states, attention_mask)
        if hasattr(self, "ssm_in_multiplier"):  # Falcon-H1
            hidden = hidden * self.ssm_in_multiplier
        projected = self.in_proj(hidden)
        if hasattr(self, "mup_vector"):
            projected = projected * self.mup_vector
        gate, x_B_C, dt = projected.split([M * P, self.conv_dim, M], dim=-1)
        x_B_C = self.convolved(x_B_C.transpose(1, 2), layer).transpose(1, 2)
        x_B_C = masked(x_B_C, attention_mask).float()
        x, write, read = x_B_C.split([M * P, G * N, G * N], dim=-1)
        x = x.unflatten(-1, (M, P))
        # The source clamps in a pass over many tokens only; one definition serves both here.
        dt = nn.functional.softplus(dt.float() + self.dt_bias.float())
        dt = dt.clamp(*self.time_step_limit)
        write = self.narrowed(write.unflatten(-1, (G, N)), self.state_write)
        read = self.narrowed(read.unflatten(-1, (G, N)), self.state_read)
        y = self.advanced((x, dt, self.packed(write)), read, layer)
        y = (y + x * self.D.float()[:, None]).flatten(2)
        if getattr(self, "mamba_rms_norm", True):
            y = self.norm(y, gate)
        else:
            y = y * nn.functional.silu(gate.float())
        return self.out_proj(y.to(hidden_states.dtype))

    def scan(
        self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, dt, write = inputs
        A = -torch.exp(self.A_log.float())
        return ssd_scan(state, x, dt, A, self.unpacked(write, self.n_groups), reads)
