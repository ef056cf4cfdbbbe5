"""Mamba-1 with some of its state channels. Every element has a decay of its own, so channels can be
left out but not mixed; what reads the kept ones is refitted.

B and C are linear in the convolved x, so selection and refit go into the weights that compute them,
unless they are normalised in between. Dropped columns of A always go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.states.mamba1_step import mamba1_step
from ...linear_map import is_plain
from ..plan import StatePlan
from ..scans.passes import Pass, selective_passes
from ..scans.selective import selective_scan
from .mixer import RecurrentMixer, masked
from .pool_step import PooledState


class Mamba1Mixer(RecurrentMixer):
    """Inputs of a token: x (M, P), dt (M, P), B (sum of ranks); it reads with C (M, r)."""

    foldable = ("A_log", "x_proj.weight", "x_proj_weight")

    @property
    def num_scan_heads(self) -> int:
        """M."""
        return self.n_mamba_heads if self.form.several_scans else 1

    def state_matrices(self, plan: StatePlan) -> tuple[str, ...]:
        return ("state_write", "state_read") if self.form.inner_norms else ()

    def folded_weights(self, plan: StatePlan, read: Tensor | None) -> dict[str, Tensor]:
        assert plan.channels is not None
        A_log = self.A_log.detach()
        M, N = self.num_scan_heads, self.ssm_state_size
        by_head = A_log.view(M, -1, N)
        narrow = by_head.new_zeros(*by_head.shape[:2], plan.width)
        for head, kept in enumerate(plan.channels):
            narrow[head, :, : len(kept)] = by_head[head][:, list(kept)]
        folded = {"A_log": narrow.view(*A_log.shape[:-1], plan.width)}
        if self.form.inner_norms:
            return folded
        name = "x_proj_weight" if self.form.several_scans else "x_proj.weight"
        weight = self.get_parameter(name).detach()
        steps, write, read_out = weight.view(M, -1, weight.shape[-1]).split(
            [self.time_step_rank, N, N], dim=1
        )
        written = write.new_zeros(M, plan.width, weight.shape[-1])
        for head, kept in enumerate(plan.channels):
            written[head, : len(kept)] = write[head, list(kept)]
        if read is None:
            read = torch.zeros(M, N, plan.width, dtype=torch.float64)
        refitted = read.to(weight.device, torch.float64).transpose(1, 2) @ read_out.double()
        rows = torch.cat([steps, written, refitted.to(weight.dtype)], dim=1)
        folded[name] = rows if weight.ndim == 3 else rows.flatten(0, 1)
        return folded

    def mix(self, hidden_states: Tensor, attention_mask: Tensor | None, layer: Any) -> Tensor:
        M = self.num_scan_heads
        rank = self.time_step_rank
        projected = self.in_proj(masked(hidden_states, attention_mask))
        if self.form.several_scans:  # [x | gate] channel by channel
            x, gate = projected.unflatten(-1, (-1, 2)).unbind(-1)
        else:
            x, gate = projected.chunk(2, dim=-1)
        x = self.convolved(x.transpose(1, 2), layer).transpose(1, 2)
        x = masked(x, attention_mask).unflatten(-1, (M, -1))
        selected = self._selected(x)
        width = (selected.shape[-1] - rank) // 2  # N, or r where channels are folded away
        step, write, read = selected.split([rank, width, width], dim=-1)
        if self.form.inner_norms:
            step = self.dt_layernorm(step)
            write, read = self.b_layernorm(write), self.c_layernorm(read)
        dt = nn.functional.softplus(self._step_sizes(step).float())
        x, write, read = x.float(), write.float(), read.float()
        write = self.narrowed(write, self.state_write)
        read = self.narrowed(read, self.state_read)
        y = self.advanced((x, dt, self.packed(write)), read, layer)
        y = (y + x * self.D.float().view(M, -1)).flatten(2) * nn.functional.silu(gate.float())
        return self.output_projection(y.to(hidden_states.dtype))

    def _selected(self, x: Tensor) -> Tensor:
        """[dt | B | C] of x (B, T, M, P), (B, T, M, rank + 2 N), or 2 r."""
        if self.form.several_scans:
            return torch.einsum("btmp,mkp->btmk", x, self.x_proj_weight)
        return self.x_proj(x)

    def _step_sizes(self, step: Tensor) -> Tensor:
        """Step sizes before the softplus, (B, T, M, P)."""
        if self.form.several_scans:
            steps = torch.einsum("btmk,mpk->btmp", step, self.dt_proj_weight)
            return steps.float() + self.dt_proj_bias.float()
        if not is_plain(self.dt_proj):
            return self.dt_proj(step).float()
        steps = nn.functional.linear(step, self.dt_proj.weight).float()
        return steps if self.dt_proj.bias is None else steps + self.dt_proj.bias.float()

    def decay_rates(self) -> Tensor:
        """A of the stored channels, (M, P, r); any number beyond a head's rank."""
        return -torch.exp(self.A_log.float()).view(self.num_scan_heads, -1, self.A_log.shape[-1])

    def scan(
        self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, dt, write = inputs
        write = self.unpacked(write, self.num_scan_heads)
        return selective_scan(state, x, dt, self.decay_rates(), write, reads)

    def passes(
        self, inputs: Sequence[Tensor], reads: Tensor, gradient: Tensor | None
    ) -> Iterator[Pass]:
        x, dt, write = inputs
        write = write.unflatten(-1, (reads.shape[2], -1))
        return selective_passes(x, dt, self.decay_rates().detach(), write, reads, gradient)

    def step_in_pool(self, state: PooledState, inputs: Sequence[Tensor], read: Tensor) -> Tensor:
        x, dt, write = inputs
        write = self.unpacked(write[:, None], self.num_scan_heads)[:, 0]
        A, backend = self.decay_rates(), state.step.backend
        return mamba1_step(
            x, dt, A, write, read, pages=state.pages, **state.tables, backend=backend
        )
