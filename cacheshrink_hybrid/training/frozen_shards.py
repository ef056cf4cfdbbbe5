"""Frozen weights in pieces: every process keeps its share of them, and has those of one layer whole
while that layer runs.

What trains stays whole on every process, where DDP averages its gradients, so the steps of all
processes are the same ones, on a manifold too. FSDP of torch cuts frozen weights as well, but a
module cannot be rid of it again, its gathering on the way back hangs on a layer's outputs needing
gradients (a local loss needs none), and it puts other parameters in the place of those known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate, chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from ..linear_map import looking_on

ALIGNED_BYTES = 64
IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"
"""Attribute of a module: names of what DistributedDataParallel neither sends nor averages."""
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Under the name that this version of torch has for it."""


class _Group:
    """Weights that are whole at the same times, as one row of bytes.

    Attributes:
        own: this process's piece of the row.
        row: all of it while the weights are whole, else None; their values are then NaN, so that
            who reads them without asking is noticed.
    """

    def __init__(self, parameters: list[nn.Parameter], device: torch.device) -> None:
        self.parameters = parameters
        self._starts = [0, *accumulate(_rounded(p.nbytes) for p in parameters)]
        count = dist.get_world_size()
        piece = _rounded(-(-self._starts[-1] // count))
        self.row: Tensor | None = None
        self.own = torch.empty(piece, dtype=torch.uint8, device=device)
        pieces = None
        if dist.get_rank() == 0:
            row = self.own.new_zeros(count * piece)
            for parameter, view in zip(parameters, self._views(row), strict=True):
                view.copy_(parameter.detach())
            pieces = list(row.split(piece))
        dist.scatter(self.own, pieces, src=0)
        nothing = torch.tensor(float("nan"), device=device)
        self._placeholders = [nothing.to(p.dtype).expand(p.shape) for p in parameters]
        self.drop()

    def _views(self, row: Tensor) -> Iterator[Tensor]:
        for parameter, start in zip(self.parameters, self._starts, strict=False):
            part = row[start : start + parameter.nbytes]
            yield part.view(parameter.dtype).view(parameter.shape)

    def gather(self) -> None:
        """Make the weights whole; all processes must."""
        if self.row is None:
            self.row = self.own.new_empty(dist.get_world_size() * len(self.own))
            _all_gather(self.row, self.own)
            for parameter, view in zip(self.parameters, self._views(self.row), strict=True):
                parameter.data = view

    def drop(self) -> None:
        self.row = None
        for parameter, placeholder in zip(self.parameters, self._placeholders, strict=True):
            parameter.data = placeholder


class FrozenShards:
    """Cuts the frozen floating-point weights of a model over all processes until `release`.

    They are gathered layer by layer, for the way there and again for the way back: what autograd
    would save of them is saved as its place in the row. All processes must therefore run the model
    equally often. The weights are those of process 0.

    Args:
        model: it is moved to `device`, its pieces one layer at a time.
        whole: parameters that stay whole.
        device: of this process.
    """

    def __init__(
        self, model: PreTrainedModel, whole: Iterable[nn.Parameter], device: torch.device
    ) -> None:
        self.model = model
        self._home = model.device
        self._groups: list[_Group] = []
        self._whole: list[_Group] = []
        self._running: list[list[_Group]] = []
        self._saving: list[saved_tensors_hooks] = []
        kept = {id(parameter) for parameter in whole}
        group_of: dict[int, _Group] = {}
        units = list(_units(model))
        for _, parameters in units:
            new = [
                p
                for p in parameters
                if p.is_floating_point() and id(p) not in kept and id(p) not in group_of
            ]
            if new:
                self._groups.append(_Group(new, device))
                group_of |= {id(p): self._groups[-1] for p in new}
        model.to(device)
        self._hooks: list[Any] = []
        for unit, parameters in units:
            found = (group_of[id(p)] for p in parameters if id(p) in group_of)
            groups = list(dict.fromkeys(found))
            if groups:
                self._hook(unit, partial(self._begin, groups), partial(self._end))
        self._hook(model, partial(self._begin_saving), partial(self._end_saving))
        names = [
            name
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in group_of
        ]
        setattr(model, IGNORED_BY_DDP, names)

    def _hook(self, module: nn.Module, before: Any, after: Any) -> None:
        before, after = looking_on(before), looking_on(after)
        self._hooks.append(module.register_forward_pre_hook(before, prepend=True))
        self._hooks.append(module.register_forward_hook(after, always_call=True))

    def __enter__(self) -> FrozenShards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception) -> None:
        self.release(failed=kind is not None)

    def release(self, *, failed: bool = False) -> None:
        """Make the frozen weights whole again on every process, and move the model back to where it
        was.

        Args:
            failed: after an error, which other processes may know nothing of, so that waiting for
                their pieces might never end: the weights are lost and stay NaN.
        """
        for hook in self._hooks:
            hook.remove()
        self._running.clear()  # of a pass that was interrupted
        self._make_whole([])
        for group in [] if failed else self._groups:
            group.gather()
            values = [p.data.to(self._home, copy=True) for p in group.parameters]
            group.drop()
            for parameter, value in zip(group.parameters, values, strict=True):
                parameter.data = value
        delattr(self.model, IGNORED_BY_DDP)
        self.model.to(self._home)

    def _begin(self, groups: list[_Group], _module, _args) -> None:
        self._running.append(groups)
        self._make_whole([])

    def _end(self, _module, _args, _output) -> None:
        self._running.pop()

    def _make_whole(self, groups: list[_Group]) -> None:
        """These, and those of modules that are running; no others."""
        needed = dict.fromkeys(chain(*self._running, groups))
        for group in self._whole:
            if group not in needed:
                group.drop()
        for group in needed:
            group.gather()
        self._whole = list(needed)

    def _begin_saving(self, _module, _args) -> None:
        self._saving.append(saved_tensors_hooks(self._pack, self._unpack))
        self._saving[-1].__enter__()

    def _end_saving(self, _module, _args, _output) -> None:
        self._saving.pop().__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> Any:
        address = tensor.untyped_storage().data_ptr()
        for group in self._whole:
            if group.row is not None and group.row.data_ptr() == address:
                place = tensor.shape, tensor.stride(), tensor.storage_offset()
                return group, tensor.dtype, place
        return tensor

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        group, dtype, place = packed
        self._make_whole([group])
        return group.row.view(dtype).as_strided(*place)


def _units(module: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Modules with the parameters that must be whole while they run: all of its layer's, a layer
    being what lists of modules hold, and outside of layers their own.

    Not only layers themselves, since some versions of transformers compute a layer again by its
    `forward`, past its hooks.
    """
    if isinstance(module, nn.ModuleList):
        for layer in module:
            parameters = list(layer.parameters())
            yield from ((part, parameters) for part in layer.modules())
        return
    yield module, list(module.parameters(recurse=False))
    for child in module.children():
        yield from _units(child)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNED_BYTES) * ALIGNED_BYTES
