"""What is asked of every kernel, kernel by kernel (`operations`).

Each operation runs on a batch with sequences of 0, 1, T - 1, T and T + 1 tokens, or with rings that
are empty, begun and full; with padding whose slots and frames are -1; with heads that fill no tile
and splits that find nothing. `COVERED` says where the rest of what is asked is tested.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from .checks import assert_close
from .operations import CODES, OPERATIONS, Outcome, Setting

HERE = Path(__file__).parent
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
THIS = "test_every_operation.py::"
DECODE = "latents/decode/test_decode.py::"
REBUILT = "latents/decode/test_rebuilt_keys.py::"
ROTATED = "latents/decode/test_rotated_keys.py::"
APPEND = "latents/append/test_append.py::"
STEPS = "states/test_state_steps.py::"
CONV = "states/conv_update_project/test_conv_update_project.py::"

COVERED: dict[str, dict[str, str]] = {
    "latent_append": {
        "lengths": APPEND + "test_any_number_of_tokens",
        "codecs": APPEND + "test_rows_are_those_of_the_reference",
        "float16": THIS + "test_16_bit_inputs",
        "bfloat16": APPEND + "test_rows_are_those_of_the_reference",
    },
    "latent_decode absorbed": {
        "codecs": DECODE + "test_equals_reference",
        "float16": DECODE + "test_16_bit_queries",
        "bfloat16": DECODE + "test_16_bit_queries",
    },
    "latent_decode rebuilt, joint": {
        "codecs": THIS + "test_every_kind_of_number",
        "float16": THIS + "test_16_bit_inputs",
        "bfloat16": REBUILT + "test_16_bit_weights",
    },
    "latent_decode rebuilt, per head": {
        "codecs": THIS + "test_every_kind_of_number",
        "float16": THIS + "test_16_bit_inputs",
        "bfloat16": THIS + "test_16_bit_inputs",
    },
    "latent_decode rotated": {
        "codecs": THIS + "test_every_kind_of_number",
        "float16": ROTATED + "test_16_bit_queries",
        "bfloat16": ROTATED + "test_16_bit_queries",
    },
    **{
        f"latent_decode {kind}, in two passes": {
            "codecs": THIS + "test_every_kind_of_number",
            "float16": THIS + "test_16_bit_inputs",
            "bfloat16": THIS + "test_16_bit_inputs",
        }
        for kind in ("absorbed", "rebuilt")
    },
    "latent_prefill": {
        "codecs": THIS + "test_every_kind_of_number",
        "float16": THIS + "test_16_bit_inputs",
        "bfloat16": THIS + "test_16_bit_inputs",
    },
    **{
        name: {
            "codecs": STEPS + "test_equals_reference",
            "float16": THIS + "test_16_bit_inputs",
            "bfloat16": STEPS + "test_equals_reference",
        }
        for name in ("ssd_step", "gdn_step", "mamba1_step")
    },
    **{
        name: {
            "codecs": THIS + "test_every_kind_of_number",
            "float16": THIS + "test_16_bit_inputs",
            "bfloat16": THIS + "test_16_bit_inputs",
        }
        for name in ("ssd_replay", "gdn_replay")
    },
    "conv_update_project": {
        "codecs": CONV + "test_equals_reference",
        "float16": THIS + "test_16_bit_inputs",
        "bfloat16": THIS + "test_16_bit_inputs",
    },
    # Bytes have no type.
    "pool_copy": dict.fromkeys(
        ("codecs", *HALVES), "pool_copy/test_pool_copy.py::test_within_an_arena"
    ),
}
"""By operation, the test of every codec and of inputs in each 16-bit type, and of lengths where the
common batch has no sequences. Rows that are stored rotated are read as absorbed ones are."""

CODECS_HERE = [name for name in OPERATIONS if COVERED[name]["codecs"].startswith(THIS)]
HALVES_HERE = [
    (name, half) for name in OPERATIONS for half in HALVES if COVERED[name][half].startswith(THIS)
]


def _run(name: str, setting: Setting, backend: str) -> Outcome:
    torch.manual_seed(7)  # the same inputs, wherever the frames lie
    return OPERATIONS[name](setting, backend)  # type: ignore[arg-type]


def _check_agreement(name: str, setting: Setting) -> Outcome:
    """The kernel's outcome, which is its reference's; neither writes what is not its own."""
    got, due = (_run(name, setting, backend) for backend in ("triton", "torch"))
    assert len(got.outputs) == len(due.outputs) > 0
    for mine, theirs in zip(got.outputs, due.outputs, strict=True):
        assert theirs.numel()
        if theirs.dtype == torch.uint8:
            assert torch.equal(mine, theirs)
            continue
        nothing_seen = theirs == -torch.inf  # a log-sum-exp
        assert (theirs.isfinite() | nothing_seen).all()
        assert theirs.isfinite().any()
        assert_close(mine, theirs)
    for (mine, step), (theirs, _) in zip(got.coded, due.coded, strict=True):
        size = theirs.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-9)
        assert theirs.abs().max() > 0
        assert ((mine - theirs).abs() / size).max() <= step
    for outcome in (got, due):
        assert torch.equal(outcome.after[~outcome.own], outcome.before[~outcome.own])
    return got


@pytest.mark.parametrize("name", OPERATIONS)
def test_agrees_with_its_reference_wherever_frames_lie(name: str, device: torch.device) -> None:
    """To 2e-5 in float32. Other frames, in another order, and other bytes wherever nothing was
    written, give the same bits."""
    here = Setting(device=device)
    first = _check_agreement(name, here)
    second = _run(name, replace(here, frames=2, poison=0x3C), "triton")
    for one, other in zip(first.outputs, second.outputs, strict=True):
        assert torch.equal(one, other)
    for (one, _), (other, _) in zip(first.coded, second.coded, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(second.after[~second.own], second.before[~second.own])


@pytest.mark.parametrize(("name", "half"), HALVES_HERE)
def test_16_bit_inputs(name: str, half: str, device: torch.device) -> None:
    _check_agreement(name, Setting(device=device, dtype=HALVES[half], layout="8", codes=("int8",)))


@pytest.mark.parametrize("name", CODECS_HERE)
def test_every_kind_of_number(name: str, device: torch.device) -> None:
    """Float rows of every kind; coded ones are in the common batch. States in every code."""
    _check_agreement(name, Setting(device=device, layout="floats", codes=tuple(CODES)))


def test_nothing_is_left_out() -> None:
    """`COVERED` has all operations, and names tests that there are."""
    assert set(COVERED) == set(OPERATIONS)
    for asked in COVERED.values():
        assert set(asked) - {"lengths"} == {"codecs", *HALVES}
        for test in asked.values():
            path, name = test.split("::")
            tree = ast.parse((HERE / path).read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
