"""Whether what `bench_kernels` measures is right: each kind of workload at a small size, against
the references in plain torch. Nothing is timed before this has passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from cacheshrink_hybrid.kernels.backend import Backend

from . import kernel_workloads as workloads
from .kernel_workloads import Workload
from .prefill_workloads import Chunk, chunk_over_full, chunk_over_latents

TOLERANCE = 2e-2
"""Largest difference, relative to the largest number of a result: bfloat16 inputs and outputs."""

WIDE = [(160, 6), (240, 4), (160, 3)]
"""More channels than one launch reads."""
STEPS = 3
"""A state that was written is read again."""

Make = Callable[..., Workload]


def small_workloads(device: torch.device) -> Iterator[tuple[Make, Make]]:
    """Pairs of what makes a workload, given `backend`, and what makes the one that it must
    equal."""
    full = {"batch": 2, "context": 70, "heads": 4, "device": device}
    state = {"batch": 2, "heads": 4, "head_dim": 16, "rank": 16, "groups": 2, "device": device}
    attention = [
        partial(workloads.latent_attention, **full, codec=codec, rank=64)
        for codec in workloads.CODECS
    ]
    heads = {"key_heads": 2, "head_dim": 16}
    for make in (
        *attention,
        *(
            partial(
                workloads.per_head_attention,
                **full,
                **heads,
                stored_rotated=stored_rotated,
                rank=16,
                value_rank=32,
            )
            for stored_rotated in (False, True)
        ),
        *(
            partial(workloads.joint_attention, **full, **heads, mode=mode, runs=WIDE)
            for mode in ("absorb", "reconstruct", "rotate")
        ),
        partial(workloads.ssd, **state, code="int8"),
        partial(workloads.gdn, **state, code="float16"),
    ):
        yield make, make
    chunk = Chunk(batch=2, history=70, num_new=9, heads=4, **heads, device=device)
    for rotated, bits in ((False, 16), (False, 4), (True, 16), (True, 8)):
        ways = partial(_chunk, chunk, bits=bits, rotated=rotated)
        # Expanding and meeting latents where they lie have one reference.
        for way in (0, 1):
            yield partial(ways, way), partial(ways, 0)
    yield partial(_full, chunk, False), partial(_full, chunk, True)


def _chunk(chunk: Chunk, way: int, *, bits: int, rotated: bool, backend: Backend) -> Workload:
    return chunk_over_latents(chunk, rank=32, bits=bits, rotated=rotated, backend=backend)[way]


def _full(chunk: Chunk, plain: bool, *, backend: Backend) -> Workload:
    return chunk_over_full(chunk, plain=plain)


def errors(device: torch.device, backend: Backend = "auto") -> dict[str, float]:
    """Relative error of each kind of workload, by name."""
    found = {}
    for made, due in small_workloads(device):
        results, name = [], ""
        for make, chosen in ((made, backend), (due, "torch")):
            torch.manual_seed(0)
            workload = make(backend=chosen)
            name = name or workload.name
            for _ in range(STEPS if workload.group.split()[0] in ("ssd", "gdn") else 1):
                result = workload.run()
            results.append(_output(result).float())
        size = results[1].abs().max()
        found[name] = float((results[0] - results[1]).abs().max() / size)
    return found


def _output(result: object) -> Tensor:
    output = result[0] if isinstance(result, tuple) else result
    assert isinstance(output, Tensor)
    return output


def faults(found: dict[str, float]) -> list[str]:
    """What is further from its reference than rounding."""
    return [
        f"{name}: off by {error:.1e} of the largest number, {TOLERANCE} is allowed"
        for name, error in found.items()
        if not error <= TOLERANCE
    ]
