"""What the mixers of this package share: a source's mixer with a narrower state and a coded cache.

A compressed mixer is the source's module with a class of its own, which subclasses the source's,
and with small matrices per group, `state_write` and `state_read`. Where channels are selected
instead of mixed, dropped ones are folded away: the weights that computed them are shorter. All
projections, norms, hooks and parameter names stay the source's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ...cache_argument import cache_argument, take_cache
from ...derived_class import Derived
from ...errors import NotSupportedError
from ...linear_map import is_plain
from ...precision import without_autocast
from ...spec import MixerForm
from ..layer import StateCacheMixin, state_layer
from ..layout import StateLayout, rounded, stored_dtype
from ..plan import StatePlan
from ..scans.coded import scan_through_codes
from ..scans.passes import Pass
from .pool_step import PooledState, state_in_pool

Observer = Callable[["RecurrentMixer", Sequence[Tensor], Tensor, Tensor], None]
"""Called with the mixer, the inputs, the reads and the output y of one pass over a text."""

PACKED_SEQUENCES = ("seq_idx", "cu_seqlens", "cu_seq_lens_q")


class RecurrentMixer(Derived, nn.Module):
    """Common part; comes before the source's class in a compressed mixer's bases.

    Attributes:
        form: how the source builds it.
        state_plan: what is stored; None while the mixer is only observed, at full width.
        state_write: L, (G, N, r); None at full width, and where it is folded into other weights.
        state_read: R, (G, N, r); None likewise.
        source_weights: what folding replaced, in the order of `folded`; empty if it is not kept.
        folded: names of the parameters that folding made shorter.
        compression_disabled: do what the source does, with the source's cache.
    """

    name_prefix = "Compressed"
    form: MixerForm
    foldable: tuple[str, ...] = ()
    """Parameters that `folded_weights` may make shorter, as far as a module has them."""
    layer_idx: int
    state_plan: StatePlan | None
    state_write: nn.Parameter | None
    state_read: nn.Parameter | None
    source_weights: nn.ParameterList
    folded: tuple[str, ...]
    state_observer: Observer | None
    compression_disabled: bool

    def compress_state(
        self, plan: StatePlan | None, read: Tensor | None = None, *, keep_source: bool = False
    ) -> None:
        """Give the module, whose class is this one by now, its plan and empty matrices, and fold
        dropped channels away.

        Args:
            read: R, (G, N, r), for weights that it is folded into; None before a checkpoint is
                loaded.
            keep_source: keep the weights that folding replaces, for `compression_disabled`.
        """
        self.use_plan(plan)
        self.state_observer = None
        self.compression_disabled = False
        names: tuple[str, ...] = ()
        if plan is not None and min(plan.ranks) < plan.state_size:
            names = self.state_matrices(plan)
        weight = next(self.parameters())
        for name in ("state_write", "state_read"):
            matrix = None
            if name in names:
                assert plan is not None
                shape = (len(plan.ranks), plan.state_size, plan.width)
                matrix = nn.Parameter(weight.new_zeros(shape), requires_grad=False)
            self.register_parameter(name, matrix)
        shorter = {}
        if plan is not None and plan.channels is not None:
            shorter = self.folded_weights(plan, read)
        self.folded = tuple(shorter)
        replaced = [self._exchange(name, value) for name, value in shorter.items()]
        self.source_weights = nn.ParameterList(replaced if keep_source else [])

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those that the source does not have."""
        for name in ("state_write", "state_read", *self.folded):
            path, _, leaf = name.rpartition(".")
            parameter = getattr(self.get_submodule(path), leaf)
            if parameter is not None:
                yield parameter

    def use_plan(self, plan: StatePlan | None) -> None:
        """Store states as `plan` says, whose ranks and channels must be those of the weights."""
        self.state_plan = plan
        if plan is not None:
            self._codec = plan.codec()
            self._ranks_differ = len(set(plan.ranks)) > 1

    def state_matrices(self, plan: StatePlan) -> tuple[str, ...]:
        """Which of `state_write` and `state_read` this mixer needs beside its folded weights."""
        return "state_write", "state_read"

    def folded_weights(self, plan: StatePlan, read: Tensor | None) -> dict[str, Tensor]:
        """By name, the parameters that are shorter without the channels that `plan` drops."""
        return {}

    def _exchange(self, name: str, value: Tensor) -> nn.Parameter:
        """Put a value in the place of a parameter, which is returned."""
        path, _, leaf = name.rpartition(".")
        module = self.get_submodule(path)
        old = getattr(module, leaf)
        new = value if isinstance(value, nn.Parameter) else nn.Parameter(value, old.requires_grad)
        setattr(module, leaf, new)
        if leaf == "weight":
            _resize(module, len(new))
        return old

    def _as_the_source(self) -> RecurrentMixer:
        """This mixer with the source's weights where they were folded: a module that shares
        everything else with this one, which stays as it is for other threads."""
        twin = _sharing(self)
        if len(self.source_weights):
            for name, weight in zip(self.folded, self.source_weights, strict=True):
                path = name.rpartition(".")[0]
                if path and twin._modules[path] is self._modules[path]:
                    twin._modules[path] = _sharing(self.get_submodule(path))
                twin._exchange(name, weight)
        return twin

    def mix(self, hidden_states: Tensor, attention_mask: Tensor | None, layer: Any) -> Tensor:
        """Everything before and after `advanced`; each kind of mixer has its own."""
        raise NotImplementedError

    def scan(
        self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def read(self, state: Tensor | None, inputs: Sequence[Tensor], reads: Tensor) -> Tensor:
        """y of `scan` where nobody needs the state."""
        return self.scan(state, inputs, reads)[0]

    def step_in_pool(self, state: PooledState, inputs: Sequence[Tensor], read: Tensor) -> Tensor:
        """What one token (B, ...) reads, (B, M, P), from a state in the pool, which takes it in."""
        raise NotImplementedError

    def passes(
        self, inputs: Sequence[Tensor], reads: Tensor, gradient: Tensor | None
    ) -> Iterator[Pass]:
        """What calibration looks at, one stretch of tokens after another.

        Args:
            gradient: of the loss with respect to y, (B, T, M, P); None without one.
        """
        raise NotImplementedError

    @property
    def output_projection(self) -> nn.Module:
        return getattr(self, self.form.output)

    def forward(self, hidden_states, *, attention_mask=None, **kwargs):
        """The mixer's output (B, T, E) for the T new tokens.

        Args:
            hidden_states: (B, T, E), after the layer's norm.
            attention_mask: (B, T), zeros where there is padding, or None.
            kwargs: the cache, updated in place, under any name of `CACHE_ARGUMENTS`.
        """
        cache = take_cache(kwargs)
        if self.compression_disabled:
            forward = super(RecurrentMixer, self._as_the_source()).forward
            given = {cache_argument(forward): cache, "attention_mask": attention_mask, **kwargs}
            return forward(hidden_states, **given)
        packed = [name for name in PACKED_SEQUENCES if kwargs.get(name) is not None]
        if packed:
            raise NotSupportedError(
                f"{', '.join(packed)}: several sequences packed into one row are not supported by "
                "a compressed recurrent state; pad them instead"
            )
        layer: PooledState | StateCacheMixin | None = None
        if cache is not None and self.state_plan is not None:
            kept = self.take_over(cache)
            layer = state_in_pool(self, cache, kept, hidden_states) or kept
        return self.mix(hidden_states, attention_mask, layer)

    def take_over(self, cache: Cache) -> StateCacheMixin:
        """This mixer's layer of a cache, which becomes one of ours at the first time."""
        layer = state_layer(cache, self.layer_idx, self.state_layout())
        layer.belongs_to(self)
        if self.learns_codes and torch.is_grad_enabled():
            layer.codes_every_boundary = True  # as a pass without a cache does
        return layer

    def state_layout(self) -> StateLayout:
        """How this mixer's states lie in a cache."""
        assert self.state_plan is not None
        return StateLayout(
            codec=self._codec,
            replay_length=self.state_plan.replay_length,
            conv_columns=self.state_plan.conv_kernel - 1,
            dtype=stored_dtype(self.conv1d.weight.dtype, self._codec),
            exact_inputs=self.state_plan.mixer.exact_inputs,
        )

    def convolved(self, columns: Tensor, layer: Any) -> Tensor:
        """Causal depthwise convolution and activation of columns (B, C, T)."""
        columns = columns.to(self.conv1d.weight.dtype)  # autocast may have computed them
        if isinstance(layer, PooledState):
            return layer.convolved(columns)
        context = self.conv1d.weight.shape[-1] - 1
        with without_autocast(columns):
            if layer is None:
                if self.learns_codes:
                    columns = rounded(columns, self.state_layout().dtype)
                window = nn.functional.pad(columns, (context, 0))
            else:
                window = layer.conv_window(columns)
            return nn.functional.silu(self._convolution(window, columns.shape[-1]))

    def _convolution(self, window: Tensor, num_new: int) -> Tensor:
        """Convolution (B, C, T) at the last T columns of a window (B, C, W - 1 + T)."""
        if not is_plain(self.conv1d):  # it also pads both ends of what it is given
            whole = self.conv1d(window)
            return whole.narrow(-1, (whole.shape[-1] - num_new) // 2, num_new)
        weight, bias = self.conv1d.weight, self.conv1d.bias
        if num_new > 1:
            return nn.functional.conv1d(window, weight, bias, groups=weight.shape[0])
        out = (window * weight[:, 0]).sum(-1, keepdim=True)
        return out if bias is None else out + bias[:, None]

    def advanced(self, inputs: Sequence[Tensor], reads: Tensor, layer: Any) -> Tensor:
        """y (B, T, M, P) of all tokens, through the cache layer if there is one."""
        with without_autocast(reads):
            if layer is not None:
                return layer.advance(self, inputs, reads)
            if self.learns_codes:
                return scan_through_codes(self, self.state_layout(), inputs, reads)
            y, _ = self.scan(None, inputs, reads)
        if self.state_observer is not None:
            self.state_observer(self, inputs, reads, y)
        return y

    @property
    def learns_codes(self) -> bool:
        """Whether passes without a cache compute with states as they are stored, for training; also
        those that are run again for their gradients."""
        if not self.training or self.state_plan is None:
            return False
        return not self.state_layout().lossless

    def narrowed(self, channels: Tensor, matrix: nn.Parameter | None) -> Tensor:
        """Channels (B, T, G, N) in the stored basis, (B, T, G, r)."""
        if matrix is None:
            return channels
        with without_autocast(channels):
            if len(matrix) == 1:
                return channels @ matrix[0].float()
            return torch.einsum("btgn,gnr->btgr", channels, matrix.float())

    def packed(self, channels: Tensor) -> Tensor:
        """(B, T, G, r) without the empty channels of narrower groups, (B, T, sum of ranks)."""
        if self.state_plan is None or not self._ranks_differ:
            return channels.flatten(2)
        parts = [channels[:, :, g, :r] for g, r in enumerate(self.state_plan.ranks)]
        return torch.cat(parts, dim=-1)

    def unpacked(self, channels: Tensor, num_groups: int) -> Tensor:
        """The inverse of `packed`."""
        if self.state_plan is None or not self._ranks_differ:
            return channels.unflatten(-1, (num_groups, -1))
        wide = channels.new_zeros(*channels.shape[:2], num_groups, self.state_plan.width)
        for g, part in enumerate(channels.split(self.state_plan.ranks, dim=-1)):
            wide[:, :, g, : part.shape[-1]] = part
        return wide


def _sharing(module: Any) -> Any:
    """A module of the same parts, of which any can be exchanged for another."""
    twin = module.__new__(type(module))
    twin.__dict__ = {
        **module.__dict__,
        "_parameters": dict(module._parameters),
        "_modules": dict(module._modules),
    }
    return twin


def _resize(module: nn.Module, num_rows: int) -> None:
    """Let a layer's sizes be those of its weight."""
    if isinstance(module, nn.Linear):
        module.out_features = num_rows
    elif isinstance(module, nn.Conv1d):
        module.in_channels = module.out_channels = module.groups = num_rows


def kept_rows(plan: StatePlan) -> Tensor:
    """Positions of the kept channels among those of all groups, G * N."""
    assert plan.channels is not None
    return torch.tensor(
        [g * plan.state_size + n for g, kept in enumerate(plan.channels) for n in kept]
    )


def masked(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Hidden states (B, T, E) with zeros where the mask (B, T) has padding."""
    if attention_mask is None or attention_mask.ndim != 2:
        return hidden_states
    return (hidden_states * attention_mask[:, :, None]).to(hidden_states.dtype)
