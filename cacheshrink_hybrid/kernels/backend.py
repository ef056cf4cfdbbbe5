"""Which implementation of an operation runs: the Triton kernel, functions that are compiled for the
CPU, or the reference in plain torch.

auto     Triton for CUDA tensors where Triton is installed, compiled functions for CPU tensors where
         numba is installed and the operation has some, else the reference
triton   the kernel, or `KernelUnavailableError`; on a CPU it runs under TRITON_INTERPRET=1
cpu      the compiled functions, or `KernelUnavailableError`; what works on rows of latents has some
torch    the reference, on any device

That is for tensors. Of a model, `auto` also leaves the layers to torch that no kernel reads: norms
that span all key heads, rotations other than of channel pairs (i, i + rotary dim / 2), angles that
depend on the length of the text, latents without a channel of values, replayed inputs of Mamba-1,
and in the engine exact sinks and windows. `triton` and `cpu` refuse them by name (`why_not` of
`latents.attention.kernel_view` and `states.mixers.pool_step`). On a CPU recurrent states are
torch's, and so are passes of many tokens, compiled graphs, and with `auto` eager attention, which
hands out probabilities.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import ConfigError, KernelUnavailableError

if TYPE_CHECKING:
    import torch

Backend = Literal["auto", "triton", "cpu", "torch"]
Implementation = Literal["triton", "cpu", "torch"]
NAMES = get_args(Backend)
REFUSING = ("triton", "cpu")
"""Backends that take what they are asked to, or refuse it by name."""


def implementation(backend: Backend, *arguments: object) -> Implementation:
    """What runs of an operation on the tensors among these arguments, if it has all three.

    Raises:
        ConfigError: an unknown backend, or tensors on different devices.
        KernelUnavailableError: `triton` or `cpu` was asked for and cannot run here.
    """
    from torch import Tensor

    devices = {argument.device for argument in arguments if isinstance(argument, Tensor)}
    if len(devices) != 1:
        raise ConfigError(
            f"tensors of one kernel lie on {sorted(map(str, devices))}; move them to one device"
        )
    return implementation_on(backend, devices.pop())


def uses_triton(backend: Backend, *arguments: object) -> bool:
    """Whether an operation that only Triton has a kernel of runs as one; raises as
    `implementation`, and where `cpu` is asked for."""
    if backend == "cpu":
        raise KernelUnavailableError(
            "backend='cpu' has kernels of operations on rows of latents only; use backend='auto'"
        )
    return implementation(backend, *arguments) == "triton"


def check_backend(backend: str) -> Backend:
    """`backend`, or `ConfigError` if there is no such."""
    if backend not in NAMES:
        raise ConfigError(f"backend={backend!r} is unknown; choose one of {', '.join(NAMES)}")
    return backend  # type: ignore[return-value]


def implementation_on(backend: Backend, device: torch.device) -> Implementation:
    """What runs on tensors of a device, as `implementation`."""
    check_backend(backend)
    on_gpu, on_cpu = device.type == "cuda", device.type == "cpu"
    if backend == "triton":
        _check_triton(on_gpu)
    elif backend == "cpu":
        _check_cpu(device)
    elif backend == "auto" and on_gpu and _installed("triton"):
        return "triton"
    elif backend == "auto" and on_cpu and _installed("numba"):
        return "cpu"
    else:
        return "torch"
    return backend


def _check_triton(on_gpu: bool) -> None:
    if not _installed("triton"):
        raise KernelUnavailableError(
            "backend='triton' needs the triton package, which is not installed; "
            "pip install triton, or use backend='torch'"
        )
    if not on_gpu and not _interpreting():
        raise KernelUnavailableError(
            "backend='triton' got CPU tensors; move them to a GPU, use backend='auto', or set "
            "TRITON_INTERPRET=1 before the first import of triton to run kernels in its interpreter"
        )


def _check_cpu(device: torch.device) -> None:
    if not _installed("numba"):
        raise KernelUnavailableError(
            "backend='cpu' needs the numba package, which is not installed; "
            "pip install 'cacheshrink_hybrid[cpu]', or use backend='torch'"
        )
    if device.type != "cpu":
        raise KernelUnavailableError(
            f"backend='cpu' got tensors on {device}; move them to the CPU, or use backend='auto'"
        )


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _interpreting() -> bool:
    from .numerics import INTERPRET

    return bool(INTERPRET.value)
