"""One token of a compressed mixer on its state in the pool, by kernels.

A mixer sees a `PooledState` where it otherwise sees its layer of the cache: the convolution moves
its window on in the frames, and the recurrence reads and writes codes there. Nothing of the size of
a state is written but its codes.

Where B and C (k and q) come out of the convolution, the launch that convolves also brings them into
the state's basis. Mamba-1 makes them of what is convolved, and channels that were folded away need
no basis: there the launch convolves only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from ...codecs.straight_through import has_gradients
from ...errors import KernelUnavailableError
from ...kernels.states.conv_update_project import ConvPages, conv_update_project
from ...kernels.states.pages import StatePages, check_head_sizes
from ...kernels.states.replay_ring import InputRing
from ...linear_map import is_plain
from ...pool.memory import StateMemory, StateStep
from ..layer import StateCacheMixin
from ..layout import StateLayout
from ..plan import StatePlan

Ring = TypeVar("Ring", bound=InputRing)


class SteppedMixer(Protocol):
    """What a step asks of its mixer, a `RecurrentMixer`."""

    layer_idx: int
    state_plan: StatePlan | None
    state_write: nn.Parameter | None
    state_read: nn.Parameter | None
    compression_disabled: bool
    conv1d: Any

    def state_layout(self) -> StateLayout: ...

    def step_in_pool(
        self, state: PooledState, inputs: Sequence[Tensor], read: Tensor
    ) -> Tensor: ...


def state_in_pool(
    mixer: SteppedMixer, cache: Any, layer: StateCacheMixin, hidden: Tensor
) -> PooledState | None:
    """The state of a mixer for one token by kernels, or None where torch takes it: always for a
    pass that begins a sequence or brings several tokens, whose scan reads the state once.

    Args:
        hidden: the mixer's input, (B, T, E).

    Raises:
        KernelUnavailableError: the cache's backend is `triton`, and that cannot run here, or
            kernels cannot take this step.
    """
    if not isinstance(cache, StateMemory) or cache.state_backend == "torch":
        return None
    reason = why_not(mixer)
    if reason is None and cache.records_past:
        reason = (
            "the past is recorded, as assisted decoding does, outside of the pool; use "
            "backend='auto', or decode without assistance"
        )
    if reason is None and hidden.shape[1] != 1:
        return None
    if reason is None and has_gradients(mixer, hidden):
        reason = "kernels have no backward pass; decode within torch.no_grad()"
    if reason is not None:
        if cache.state_backend == "triton":
            raise KernelUnavailableError(
                f"layer {mixer.layer_idx} is not stepped by kernels: {reason}"
            )
        return None
    step = cache.state_step(mixer.layer_idx, layer.num_pending)
    return None if step is None else PooledState(mixer, layer, step)


def why_not(mixer: SteppedMixer) -> str | None:
    """What keeps kernels from stepping a mixer's state; None if nothing does."""
    plan = mixer.state_plan
    if plan is None or mixer.compression_disabled:
        return "it is not converted"
    if not is_plain(mixer.conv1d):
        return (
            f"its convolution is computed by a {type(mixer.conv1d).__name__} that is wrapped or "
            "has hooks"
        )
    if plan.replay_length > 1 and not plan.mixer.replayed:
        title = plan.mixer.title
        return f"no kernel replays the inputs of {title}; convert with replay_length=1"
    try:
        check_head_sizes(mixer.state_layout().codec)
    except KernelUnavailableError as fault:
        return str(fault)
    return None


class PooledState:
    """A mixer's state in the pool, for one token; takes the place of its cache layer."""

    def __init__(self, mixer: SteppedMixer, layer: StateCacheMixin, step: StateStep) -> None:
        assert mixer.state_plan is not None
        self.mixer, self.layer, self.step = mixer, layer, step
        self.layout = layer.layout

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

    def advance(self, owner: SteppedMixer, inputs: Sequence[Tensor], reads: Tensor) -> Tensor:
        """Take one token in and return what it reads, y (B, 1, M, P)."""
        y = owner.step_in_pool(self, [x[:, 0] for x in inputs], reads[:, 0])
        self.layer.count_token()
        return y[:, None]
