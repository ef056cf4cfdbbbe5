"""Which implementation of an operation runs: the Triton kernel, or its reference in plain torch.

auto     Triton for CUDA tensors where Triton is installed, else the reference
triton   the kernel, or `KernelUnavailableError`; on a CPU it runs under TRITON_INTERPRET=1
torch    the reference, on any device

That is for tensors. Of a model, `auto` also leaves the layers to torch that no kernel reads: norms
that span all key heads, rotations other than of channel pairs (i, i + rotary dim / 2), angles that
depend on the length of the text, latents without a channel of values, replayed inputs of Mamba-1,
and in the engine exact sinks and windows. `triton` refuses them by name (`why_not` of
`latents.attention.kernel_view` and `states.mixers.pool_step`).
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import ConfigError, KernelUnavailableError

if TYPE_CHECKING:
    import torch

Backend = Literal["auto", "triton", "torch"]


def uses_triton(backend: Backend, *arguments: object) -> bool:
    """Whether an operation on the tensors among these arguments runs as a Triton kernel.

    Raises:
        ConfigError: an unknown backend, or tensors on different devices.
        KernelUnavailableError: `triton` was asked for and cannot run here.
    """
    from torch import Tensor

    devices = {argument.device for argument in arguments if isinstance(argument, Tensor)}
    if len(devices) != 1:
        raise ConfigError(
            f"tensors of one kernel lie on {sorted(map(str, devices))}; move them to one device"
        )
    return runs_triton(backend, devices.pop())


def check_backend(backend: str) -> Backend:
    """`backend`, or `ConfigError` if there is no such."""
    if backend not in get_args(Backend):
        raise ConfigError(
            f"backend={backend!r} is unknown; choose one of {', '.join(get_args(Backend))}"
        )
    return backend  # type: ignore[return-value]


def runs_triton(backend: Backend, device: torch.device) -> bool:
    """Whether operations on tensors of a device run as Triton kernels; raises as `uses_triton`."""
    check_backend(backend)
    if backend == "torch":
        return False
    on_gpu = device.type == "cuda"
    installed = importlib.util.find_spec("triton") is not None
    if backend == "auto":
        return on_gpu and installed
    if not installed:
        raise KernelUnavailableError(
            "backend='triton' needs the triton package, which is not installed; "
            "pip install triton, or use backend='torch'"
        )
    if not on_gpu and not _interpreting():
        raise KernelUnavailableError(
            "backend='triton' got CPU tensors; move them to a GPU, use backend='torch', or set "
            "TRITON_INTERPRET=1 before the first import of triton to run kernels in its interpreter"
        )
    return True


def _interpreting() -> bool:
    from .numerics import INTERPRET

    return bool(INTERPRET.value)
