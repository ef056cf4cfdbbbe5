"""The byte and operation model of reading."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cacheshrink_hybrid.device_profile import DEVICE_PROFILES, DeviceProfile
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.latents.decode import BlockUp, KeyUp, LatentRead
from cacheshrink_hybrid.latents.fit.read_time import Reading, Work

J, D, H = 2, 32, 4
SIZES = {"num_heads": H, "kv_width": J * D, "head_dim": D, "key_rank": 32, "value_rank": 48}
CPU, H200 = DEVICE_PROFILES["CPU"], DEVICE_PROFILES["H200"]


@pytest.mark.parametrize(
    "method, mode, operations",
    [
        ("joint", "absorb", 2 * H * (32 + 48)),
        ("rotate", "rotate", 2 * H * (32 + D + 48) + 2 * H * D * 32 // 64),
        ("joint", "reconstruct", 2 * J * D * 32 + 2 * H * D + 2 * H * 48),
        ("per_head", "reconstruct", 2 * D * 32 + 2 * H * D + 2 * H * 48),
    ],
)
def test_operations(method: str, mode: str, operations: int) -> None:
    reading = Reading(method=method, read_mode=mode, row_bytes=50, **SIZES)
    assert reading.operations == operations
    assert reading.launches(CPU) == (Work(50, operations),)
    assert sum(work.operations for work in reading.launches(H200)) == operations


def test_values_that_are_keys_are_met_twice() -> None:
    sizes = {"method": "joint", "read_mode": "reconstruct", "row_bytes": 50, **SIZES}
    plain, both = Reading(**sizes), Reading(**sizes, scores_values=True)
    assert both.operations == plain.operations + 2 * H * 48


def test_the_slower_of_bytes_and_operations_counts() -> None:
    profile = DeviceProfile(name="x", bandwidth=10.0, matrix_rate=100.0)
    assert Work(50, 100).seconds(profile) == 5.0
    assert Work(5, 100).seconds(profile) == 1.0
    reading = Reading(method="rotate", read_mode="rotate", row_bytes=50, **SIZES)
    works = reading.launches(profile)
    assert reading.seconds(profile) == sum(work.seconds(profile) for work in works)


def _wide(method: str, mode: str, key_rank: int, value_rank: int) -> Reading:
    """Of an 8 B model at 4x."""
    return Reading(
        method=method,
        read_mode=mode,
        num_heads=32,
        kv_width=1024,
        head_dim=128,
        key_rank=key_rank,
        value_rank=value_rank,
        row_bytes=1024,
    )


def test_wide_rows_are_read_twice_with_scratch_between() -> None:
    weights, absorbed, of_mean = 2 * 32, 2 * 32 * 1840 // 64, 4 * 32
    ask, score, mix = _wide("rotate_joint", "rotate", 1840, 1840).launches(H200)
    assert ask == Work(absorbed + of_mean, 2 * 32 * (128 * 1840 // 64 + 128))
    assert score == Work(1024 + weights + absorbed + of_mean, 2 * 32 * 1840)
    assert mix == Work(1024 + weights, 2 * 32 * 1840)
    score, mix = _wide("joint", "reconstruct", 1840, 1840).launches(H200)
    assert (score.num_bytes, mix.num_bytes) == (1024 + weights, 1024 + weights)
    # Apart, keys are read by the one pass and values by the other.
    score, mix = _wide("separate", "absorb", 480, 480).launches(H200)
    assert (score.num_bytes, mix.num_bytes) == (512 + weights, 512 + weights)


@pytest.mark.parametrize(
    ("method", "mode", "ranks", "held"),
    [
        ("joint", "absorb", (512, 512), True),
        ("joint", "absorb", (528, 528), False),
        ("joint", "reconstruct", (64, 64), True),
        ("joint", "reconstruct", (80, 80), False),  # weights of 80 x 128
        ("per_head", "reconstruct", (8 * 64, 320), True),
        ("per_head", "reconstruct", (8 * 64, 336), False),
        ("rotate", "rotate", (64, 64), False),
    ],
)
def test_what_one_launch_holds_is_what_the_kernels_say(
    method: str, mode: str, ranks: tuple[int, int], held: bool
) -> None:
    key_rank, value_rank = ranks
    assert _wide(method, mode, key_rank, value_rank).in_one_launch == held
    own_rank = key_rank // 8 if method == "per_head" else key_rank
    weight = torch.empty(8, 128, own_rank)
    ups: dict[str, Any] = {}
    if mode == "reconstruct":
        bias = torch.empty(8, 128)
        ups["key_up"] = KeyUp(weight=weight, bias=bias, per_head=method == "per_head")
    elif mode == "rotate":
        angles = torch.empty(1, 64)
        mean = torch.empty(8, 64, 128)
        ups["block_up"] = BlockUp(weight=weight, mean=mean, cos=angles, sin=angles)
    read = LatentRead(key_rank=key_rank, value_rank=value_rank, scale=1.0, **ups)
    channels = key_rank if method == "joint" else key_rank + value_rank
    assert read.in_one_launch(channels, 2) == held


def test_profiles_are_parsed() -> None:
    assert DeviceProfile.parse("H200") is DEVICE_PROFILES["H200"]
    given = DeviceProfile.parse("2e12:3e14")
    assert (given.bandwidth, given.matrix_rate) == (2e12, 3e14)


def test_the_profile_of_a_device_is_found_by_its_name(monkeypatch) -> None:
    assert DeviceProfile.of(torch.device("cpu")).name == "CPU"
    for name, due in (
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "H100"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert DeviceProfile.of(torch.device("cuda", 0)).name == due


@pytest.mark.parametrize("text", ["", "B200", "1e12", "0:1", "inf:1", "1:nan", "1:2:3"])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="BYTES_PER_SECOND"):
        DeviceProfile.parse(text)
