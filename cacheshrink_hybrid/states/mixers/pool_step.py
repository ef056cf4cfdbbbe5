"""One token of a compressed mixer on its state in the pool, by kernels.

A mixer sees a `PooledState` where it otherwise sees its layer of the cache: the convolution moves
its window on in the frames, and the recurrence reads and writes codes there. Nothing of the size of
a state is written but its codes.

Where B and C (k and q) come out of the convolution, the launch that convolves also brings them into
the state's basis. Mamba-1 makes them of what is convolved, and channels that were folded away need
no basis: there the launch convolves only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ...codecs.straight_through import has_gradients
from ...errors import KernelUnavailableError
from ...kernels.backend import Backend, runs_triton
from ...kernels.states.conv_update_project import ConvPages, conv_update_project
from ...kernels.states.gdn_replay import DeltaRing, gdn_replay_step
from ...kernels.states.gdn_step import gdn_step
from ...kernels.states.mamba1_step import mamba1_step
from ...kernels.states.pages import StatePages, check_head_sizes
from ...kernels.states.replay_ring import InputRing
from ...kernels.states.ssd_replay import ReplayRing, ssd_replay_flush, ssd_replay_read
from ...kernels.states.ssd_step import ssd_step
from ...linear_map import is_plain
from ...pool.memory import StateStep
from ..layer import StateCacheMixin

Ring = TypeVar("Ring", bound=InputRing)

if TYPE_CHECKING:
    from .mixer import RecurrentMixer


def state_in_pool(
    mixer: RecurrentMixer, cache: Any, layer: StateCacheMixin, hidden: Tensor
) -> PooledState | None:
    """The state of a mixer for one token by kernels, or None where torch takes it: always for a
    pass that begins a sequence or brings several tokens, whose scan reads the state once.

    Args:
        hidden: the mixer's input, (B, T, E).

    Raises:
        KernelUnavailableError: the cache's backend is `triton`, and that cannot run here, or
            kernels cannot take this step.
    """
    backend: Backend = getattr(cache, "backend", "torch")
    if backend == "torch" or not runs_triton(backend, hidden.device):
        return None
    reason = why_not(mixer)
    if reason is None and getattr(cache, "records_past", False):
        reason = (
            "the past is recorded, as assisted decoding does, outside of the pool; use "
            "backend='auto', or decode without assistance"
        )
    if reason is None and hidden.shape[1] != 1:
        return None
    if reason is None and has_gradients(mixer, hidden):
        reason = "kernels have no backward pass; decode within torch.no_grad()"
    if reason is not None:
        if backend == "triton":
            raise KernelUnavailableError(
                f"layer {mixer.layer_idx} is not stepped by kernels: {reason}"
            )
        return None
    step = cache.state_step(mixer.layer_idx, layer.num_pending)
    return None if step is None else PooledState(mixer, layer, step)


def why_not(mixer: RecurrentMixer) -> str | None:
    """What keeps kernels from stepping a mixer's state; None if nothing does."""
    plan = mixer.state_plan
    if plan is None or mixer.compression_disabled:
        return "it is not converted"
    if not is_plain(mixer.conv1d):
        return (
            f"its convolution is computed by a {type(mixer.conv1d).__name__} that is wrapped or "
            "has hooks"
        )
    if plan.replay_length > 1 and plan.kind == "mamba":
        return "no kernel replays the inputs of Mamba-1; convert with replay_length=1"
    try:
        check_head_sizes(mixer.state_layout().codec)
    except KernelUnavailableError as fault:
        return str(fault)
    return None


class PooledState:
    """A mixer's state in the pool, for one token; takes the place of its cache layer."""

    def __init__(self, mixer: RecurrentMixer, layer: StateCacheMixin, step: StateStep) -> None:
        assert mixer.state_plan is not None
        self.mixer, self.layer, self.step = mixer, layer, step
        self.layout = layer.layout
        self.kind = mixer.state_plan.kind

    @property
    def tables(self) -> dict[str, Tensor]:
        return {"read_table": self.step.read_table, "write_table": self.step.write_table}

    @property
    def pages(self) -> StatePages:
        """Where codes lie."""
        return StatePages(
            arena=self.step.arena,
            frame_bytes=self.step.frame_bytes,
            place=self.step.places["recurrent", 0],
            format=self.layout.codec,
        )

    def ring(self, kind: type[Ring], groups: int, *parts: str) -> Ring:
        """The ring of inputs, whose parts have these names in the order of the cache."""
        places = {
            name: self.step.places["recurrent", 1 + number] for number, name in enumerate(parts)
        }
        assert self.mixer.state_plan is not None
        ranks = self.mixer.state_plan.ranks
        return kind(
            length=self.layout.replay_length - 1,
            groups=groups,
            ranks=ranks if len(set(ranks)) > 1 else None,
            dtype=self.layout.dtype,
            **places,
        )

    def convolved(self, columns: Tensor) -> Tensor:
        """Convolution and activation of columns (B, C, 1), whose window is moved on."""
        return self._convolved(columns, ("values",))[0][..., None]

    def projected(
        self,
        columns: Tensor,
        order: tuple[str, ...],
        *,
        groups: int,
        group_size: int,
        normalize: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`convolved`, with what writes and reads the state in its basis.

        Args:
            columns: (B, C, 1).
            order, groups, group_size, normalize: see `conv_update_project`.

        Returns:
            values (B, 1, the rest) in columns' type; write and read, (B, 1, G, r) float32, None
            where they are not in `order`.
        """
        parts = self._convolved(
            columns,
            order,
            groups=groups,
            group_size=group_size,
            normalize=normalize,
            write_basis=self.mixer.state_write,
            read_basis=self.mixer.state_read,
        )
        values, write, read = (None if part is None else part[:, None] for part in parts)
        assert values is not None
        return values, write, read

    def _convolved(
        self, columns: Tensor, order: tuple[str, ...], **shared: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        conv, step = self.mixer.conv1d, self.step
        pages = ConvPages(
            arena=step.arena,
            frame_bytes=step.frame_bytes,
            place=step.places["conv", 0],
            channels=columns.shape[1],
            columns=self.layout.conv_columns,
            dtype=self.layout.dtype,
        )
        return conv_update_project(
            columns[..., 0].to(conv.weight.dtype),  # autocast may have computed them
            conv.weight[:, 0],
            conv.bias,
            pages=pages,
            **self.tables,
            order=order,
            backend=step.backend,
            **shared,
        )

    def advance(self, owner: RecurrentMixer, inputs: Sequence[Tensor], reads: Tensor) -> Tensor:
        """Take one token in and return what it reads, y (B, 1, M, P)."""
        y = STEPS[self.kind](self, owner, [x[:, 0] for x in inputs], reads[:, 0])
        self.layer.count_token()
        return y[:, None]


def _mamba2(state: PooledState, mixer: Any, inputs: Sequence[Tensor], read: Tensor) -> Tensor:
    x, dt, write = inputs
    write = mixer.unpacked(write[:, None], mixer.n_groups)[:, 0]
    A = -torch.exp(mixer.A_log.float())
    step, backend = state.step, state.step.backend
    if state.layout.replay_length == 1:
        return ssd_step(x, dt, A, write, read, pages=state.pages, **state.tables, backend=backend)
    # A ring begins in the frames that are written; the cache has copied what it held.
    ring = state.ring(ReplayRing, mixer.n_groups, "values", "steps", "writes")
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


def _mamba1(state: PooledState, mixer: Any, inputs: Sequence[Tensor], read: Tensor) -> Tensor:
    x, dt, write = inputs
    write = mixer.unpacked(write[:, None], mixer.num_scan_heads)[:, 0]
    A, backend = mixer.decay_rates(), state.step.backend
    return mamba1_step(x, dt, A, write, read, pages=state.pages, **state.tables, backend=backend)


def _delta_net(state: PooledState, mixer: Any, inputs: Sequence[Tensor], query: Tensor) -> Tensor:
    key, value, log_decay, beta = inputs
    key = mixer.unpacked(key[:, None], mixer.num_k_heads)[:, 0]
    if state.layout.replay_length > 1:
        return gdn_replay_step(
            key,
            value,
            log_decay,
            beta,
            query,
            pages=state.pages,
            ring=state.ring(DeltaRing, mixer.num_k_heads, "writes", "values", "decays", "betas"),
            table=state.step.write_table,
            num_pending=state.step.num_pending,
            backend=state.step.backend,
        )
    return gdn_step(
        key,
        value,
        log_decay,
        beta,
        query,
        pages=state.pages,
        **state.tables,
        backend=state.step.backend,
    )


STEPS: dict[str, Callable[[PooledState, Any, Sequence[Tensor], Tensor], Tensor]] = {
    "mamba2": _mamba2,
    "mamba": _mamba1,
    "gated_delta_net": _delta_net,
}
