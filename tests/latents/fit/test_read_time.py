"""The byte and operation model of reading."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.device_profile import DEVICE_PROFILES, DeviceProfile
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.latents.fit.read_time import read_operations, read_seconds

J, D, H = 2, 32, 4
SIZES = {"num_heads": H, "kv_width": J * D, "head_dim": D, "key_rank": 32, "value_rank": 48}


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
    assert read_operations(method, mode, **SIZES) == operations


def test_the_slower_of_bytes_and_operations_counts() -> None:
    profile = DeviceProfile(name="x", bandwidth=10.0, matrix_rate=100.0)
    assert read_seconds(profile, 50, 100) == 5.0
    assert read_seconds(profile, 5, 100) == 1.0


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
