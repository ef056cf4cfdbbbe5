"""One step of a mixer's short convolution, and what stands behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....errors import ConfigError
from ...backend import Backend, uses_triton
from ..pages import StatePlace, check_shapes

__all__ = ["ConvPages", "conv_update_project"]

SHARED_PARTS = (("write", "read"), ("read", "write"), ("write",), ("read",))
ORDERS = (
    ("values",),
    *(("values", *parts) for parts in SHARED_PARTS),
    *((*parts, "values") for parts in SHARED_PARTS),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvPages:
    """The last columns before a convolution, in the arena: (channels, columns) per sequence.

    Attributes:
        arena: the pool, 1-d uint8.
        frame_bytes: size of a frame.
        place: where they lie in a sequence's frames.
        channels: C.
        columns: W - 1, from the oldest to the newest.
        dtype: float32, float16 or bfloat16.
    """

    arena: Tensor
    frame_bytes: int
    place: StatePlace
    channels: int
    columns: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        faults = []
        if self.arena.dtype != torch.uint8 or self.arena.ndim != 1:
            faults.append(f"arena is {self.arena.dtype}, {self.arena.ndim}-d; due is 1-d uint8")
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            faults.append(f"columns of {self.dtype}; due is float32, float16 or bfloat16")
        place = self.place
        if place.row_bytes < 16 or place.row_bytes % 16 or place.first_offset % 16:
            faults.append(f"{place} must lie at multiples of 16 bytes")
        if self.frame_bytes % 16 or self.frame_bytes < place.row_bytes:
            faults.append(f"frames of {self.frame_bytes} bytes; due is a multiple of 16")
        if self.columns < 1:
            faults.append(f"columns={self.columns} must be at least 1")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def num_frames(self) -> int:
        """Frames that a table must have to reach the last byte."""
        last = self.channels * self.columns * self.dtype.itemsize - 1
        return int(self.place.locate(torch.tensor(last), self.frame_bytes)[0]) + 1


def conv_update_project(
    column: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    pages: ConvPages,
    read_table: Tensor,
    write_table: Tensor,
    order: tuple[str, ...],
    groups: int = 0,
    group_size: int = 0,
    write_basis: Tensor | None = None,
    read_basis: Tensor | None = None,
    normalize: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Shift a column into each sequence's window, convolve, SiLU, and bring what writes and reads
    the state into its basis.

        z = silu(bias + sum_j weight[:, j] window[:, j]),    window = last W columns
        values = z's values,   write = L^T z's write part,   read = R^T z's read part

    Mamba-2 has `order` (values, write, read) for x, B, C, and (values, read) where B needs no
    projection and counts among the values. The gated delta rule has (read, write, values) for q, k,
    v, with `normalize`: groups are divided by their length before projection. Mamba-1 has (values,)
    alone, because it makes B and C of what is convolved.

    Args:
        column: before the convolution, (B, C).
        weight: depthwise, (C, W).
        bias: (C,), or None.
        pages: the last W - 1 columns.
        read_table, write_table: frames of each sequence's state, (B, frames), int32; a first frame
            of -1 reads as zeros, and is not written.
        order: which parts there are, and which channels come first, second and third; write and
            read have groups * group_size each, the others are values.
        groups, group_size: G and N; 0 where all channels are values.
        write_basis, read_basis: L and R, (G, N, r); None for no projection. Zeros fill the columns
            of groups with fewer than r.
        normalize: x / sqrt(|x|^2 + 1e-6) within each group of write and read.

    Returns:
        values, (B, the channels that are left), in column's type; write and read, (B, G, r or N),
        float32, None where they are not in `order`.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.
    """
    B, C = len(column), pages.channels
    if order not in ORDERS:
        raise ConfigError(
            f"order={order}; due are values, write and read, each at most once and values first or "
            "last, e.g. (values, write, read)"
        )
    if len(order) == 1 and (groups or group_size or normalize):
        raise ConfigError(
            f"groups={groups}, group_size={group_size}, normalize={normalize} concern write and "
            f"read, which order={order} does not have; leave them out"
        )
    if len(order) > 1 and min(groups, group_size) < 1:
        raise ConfigError(f"{groups} groups of {group_size} channels; due is at least 1 of 1")
    if C - (len(order) - 1) * groups * group_size < 1:
        raise ConfigError(
            f"{C} channels leave no values beside {len(order) - 1} x {groups} x {group_size}"
        )
    check_shapes(
        column=(column, (B, C)),
        weight=(weight, (C, pages.columns + 1)),
        bias=(bias, (C,)),
    )
    for name, basis in (("write_basis", write_basis), ("read_basis", read_basis)):
        if basis is not None and name.removesuffix("_basis") not in order:
            raise ConfigError(f"{name} is given, but order={order} has no such part")
        if basis is not None and (basis.ndim != 3 or basis.shape[:2] != (groups, group_size)):
            raise ConfigError(
                f"{name} has shape {tuple(basis.shape)}; due is ({groups}, {group_size}, r)"
            )
    for name, table in (("read_table", read_table), ("write_table", write_table)):
        if table.dtype != torch.int32 or table.ndim != 2 or not table.is_contiguous():
            raise ConfigError(f"{name} is {table.dtype}, {table.ndim}-d; due is 2-d int32")
        if table.shape[0] != B or table.shape[1] < pages.num_frames:
            raise ConfigError(
                f"{name} has shape {tuple(table.shape)}; due is ({B}, {pages.num_frames})"
            )
    if read_table.shape != write_table.shape:
        raise ConfigError("read_table and write_table have different shapes")
    arguments = (
        *(column, weight, bias, pages, read_table, write_table, order, groups, group_size),
        *(write_basis, read_basis, normalize),
    )
    tensors = (column, weight, bias, pages.arena, read_table, write_table, write_basis, read_basis)
    if uses_triton(backend, *tensors):
        from .kernel import conv_update_project_triton

        return conv_update_project_triton(*arguments)
    from .reference import conv_update_project_reference

    return conv_update_project_reference(*arguments)
