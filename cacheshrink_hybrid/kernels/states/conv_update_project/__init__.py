"""One step of a mixer's short convolution, and what stands behind it."""

from __future__ import annotations

from torch import Tensor

from ....errors import ConfigError
from ...backend import Backend, uses_triton
from ...checks import check_shapes
from ..pages import check_state_tables
from .pages import ConvPages

__all__ = ["ConvPages", "conv_update_project"]

SHARED_PARTS = (("write", "read"), ("read", "write"), ("write",), ("read",))
ORDERS = (
    ("values",),
    *(("values", *parts) for parts in SHARED_PARTS),
    *((*parts, "values") for parts in SHARED_PARTS),
)


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
    check_state_tables(pages.num_frames, B, read_table, write_table)
    arguments = (
        *(column, weight, bias, pages, read_table, write_table, order, groups, group_size),
        *(write_basis, read_basis, normalize),
    )
    if uses_triton(backend, pages.arena, *arguments):
        from .kernel import conv_update_project_triton

        return conv_update_project_triton(*arguments)
    from .reference import conv_update_project_reference

    return conv_update_project_reference(*arguments)
