"""Mamba-2 with r state channels per group: what is written and read is projected after the
convolution, and everything between runs at width r.

Selected channels need no projection: between the rows of the input projection and B and C stands
nothing but a convolution channel by channel, so rows and convolution of dropped channels are left
out. Only where what reads the kept channels is refitted, C stays complete and is projected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.states.ssd_replay import ReplayRing, ssd_replay_flush, ssd_replay_read
from ...kernels.states.ssd_step import ssd_step
from ..plan import StatePlan
from ..scans.passes import Pass, gated_passes
from ..scans.ssd import ssd_read, ssd_scan
from .mixer import RecurrentMixer, kept_rows, masked
from .pool_step import PooledState


class Mamba2Mixer(RecurrentMixer):
    """Inputs of a token: x (M, P), dt (M,), B (sum of ranks); it reads with C (G, r)."""

    foldable = ("in_proj.weight", "conv1d.weight")

    def state_matrices(self, plan: StatePlan) -> tuple[str, ...]:
        if plan.channels is None:
            return "state_write", "state_read"
        return ("state_read",) if _refits(plan) else ()

    def folded_weights(self, plan: StatePlan, read: Tensor | None) -> dict[str, Tensor]:
        rows = self._rows(plan)
        inner, heads = self.num_heads * self.head_dim, self.num_heads
        columns = rows[inner : len(rows) - heads] - inner
        kept = {}
        for name, index in (("in_proj", rows), ("conv1d", columns)):
            for leaf, parameter in getattr(self, name).named_parameters():
                kept[f"{name}.{leaf}"] = parameter.detach()[index.to(parameter.device)]
        return kept

    def _rows(self, plan: StatePlan) -> Tensor:
        """Kept rows of the input projection, [gate | x | B | C | dt]."""
        inner, wide = self.num_heads * self.head_dim, self.n_groups * self.ssm_state_size
        written = kept_rows(plan)
        read = torch.arange(wide) if _refits(plan) else written
        steps = torch.arange(self.num_heads)
        starts = (torch.arange(2 * inner), 2 * inner, 2 * inner + wide, 2 * (inner + wide))
        return torch.cat([starts[0], starts[1] + written, starts[2] + read, starts[3] + steps])

    def mix(self, hidden_states: Tensor, attention_mask: Tensor | None, layer: Any) -> Tensor:
        M, P = self.num_heads, self.head_dim
        hidden = masked(hidden_states, attention_mask)
        if self.form.multipliers:
            hidden = hidden * self.ssm_in_multiplier
        projected = self.in_proj(hidden)
        if self.form.multipliers:
            projected = projected * self._multipliers()
        conv_channels = self.conv1d.weight.shape[0]
        gate, x_B_C, dt = projected.split([M * P, conv_channels, M], dim=-1)
        x, write, read = self._convolved_parts(x_B_C.transpose(1, 2), attention_mask, layer)
        # The source clamps in a pass over many tokens only; one definition serves both here.
        dt = nn.functional.softplus(dt.float() + self.dt_bias.float())
        if tuple(self.time_step_limit) != (0.0, math.inf):
            dt = dt.clamp(*self.time_step_limit)
        y = self.advanced((x, dt, write), read, layer)
        y = (y + x * self.D.float()[:, None]).flatten(2)
        if not self.form.optional_norm or self.mamba_rms_norm:
            y = self.norm(y, gate)
        else:
            y = y * nn.functional.silu(gate.float())
        return self.output_projection(y.to(hidden_states.dtype))

    def _convolved_parts(
        self, columns: Tensor, attention_mask: Tensor | None, layer: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, M, P), B packed (B, T, sum of ranks) and C (B, T, G, r), float32, of columns
        (B, C, T) before the convolution."""
        M, P, G, N = self.num_heads, self.head_dim, self.n_groups, self.ssm_state_size
        plan = self.state_plan
        folded = plan is not None and plan.channels is not None
        pruned = folded and self.state_read is None
        read_width = sum(plan.ranks) if plan is not None and pruned else G * N
        widths = [M * P, columns.shape[1] - M * P - read_width, read_width]
        if isinstance(layer, PooledState) and not pruned:
            # A folded B is convolved and that is all, as x is.
            order = ("values", "read") if folded else ("values", "write", "read")
            values, write, read = layer.projected(columns, order, groups=G, group_size=N)
            assert read is not None
            parts = [values.float(), read.flatten(2)]
            if write is None:
                parts[:1] = parts[0].split(widths[:2], dim=-1)
            else:
                parts.insert(1, self.packed(write))
            x, write, read = (masked(part, attention_mask) for part in parts)
            return x.unflatten(-1, (M, P)), write, read.unflatten(-1, (G, -1))
        convolved = self.convolved(columns, layer).transpose(1, 2)
        x, write, read = masked(convolved, attention_mask).float().split(widths, dim=-1)
        if not folded:
            write = self.packed(self.narrowed(write.unflatten(-1, (G, N)), self.state_write))
        if pruned:
            read = self.unpacked(read, G)
        else:
            read = self.narrowed(read.unflatten(-1, (G, N)), self.state_read)
        return x.unflatten(-1, (M, P)), write, read

    def _multipliers(self) -> Tensor:
        """Factors of the input projection's rows."""
        vector = self.mup_vector
        if not self.folded:
            return vector
        assert self.state_plan is not None
        rows = self.__dict__.get("_kept_rows")
        if rows is None or rows.device != vector.device:
            rows = self.__dict__["_kept_rows"] = self._rows(self.state_plan).to(vector.device)
        return vector[..., rows]

    def scan(
        self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, dt, write = inputs
        A = -torch.exp(self.A_log.float())
        return ssd_scan(state, x, dt, A, self.unpacked(write, self.n_groups), reads)

    def read(self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor) -> Tensor:
        x, dt, write = inputs
        A = -torch.exp(self.A_log.float())
        return ssd_read(state, x, dt, A, self.unpacked(write, self.n_groups), reads)

    def passes(
        self, inputs: Sequence[Tensor], reads: Tensor, gradient: Tensor | None
    ) -> Iterator[Pass]:
        x, dt, write = inputs
        A = -torch.exp(self.A_log.detach().float())
        write = write.unflatten(-1, (reads.shape[2], -1))
        return gated_passes(write, x * dt[..., None], dt * A, gradient)

    def step_in_pool(self, state: PooledState, inputs: Sequence[Tensor], read: Tensor) -> Tensor:
        x, dt, write = inputs
        write = self.unpacked(write[:, None], self.n_groups)[:, 0]
        A = -torch.exp(self.A_log.float())
        step, backend = state.step, state.step.backend
        if state.layout.replay_length == 1:
            return ssd_step(
                x, dt, A, write, read, pages=state.pages, **state.tables, backend=backend
            )
        # A ring begins in the frames that are written; the cache has copied what it held.
        ring = state.ring(ReplayRing, self.n_groups, "values", "steps", "writes")
        table = step.write_table
        shared: dict[str, Any] = {
            "pages": state.pages,
            "ring": ring,
            "num_pending": step.num_pending,
            "backend": backend,
        }
        y = ssd_replay_read(x, dt, A, write, read, table=table, **shared)
        full = torch.where((step.num_pending == ring.length)[:, None], table, -1)
        ssd_replay_flush(A, newest=(x, dt, write), read_table=table, write_table=full, **shared)
        return y


def _refits(plan: StatePlan) -> bool:
    """Whether C stays complete, to be read by what makes up for the dropped channels."""
    return plan.narrowing is not None and plan.narrowing.refits
