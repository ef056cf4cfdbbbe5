"""The byte and operation model of reading, and what the objectives choose by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.device_profile import DEVICE_PROFILES, DeviceProfile
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.latents.fit.factors import KeyShape
from cacheshrink_hybrid.latents.fit.kinds import Candidate, Reader, fastest_factors, preferred
from cacheshrink_hybrid.latents.fit.read_time import read_operations, read_seconds
from tests.moments import random_unit

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


@pytest.mark.parametrize("text", ["", "B200", "1e12", "0:1", "inf:1", "1:nan", "1:2:3"])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="BYTES_PER_SECOND"):
        DeviceProfile.parse(text)


def _chosen(objective: str, bandwidth: float, matrix_rate: float, **shape) -> str:
    angles = torch.arange(64)[:, None] * 0.1 ** torch.arange(D // 2).double()
    shape = {"rotary_dim": D, "block_angles": angles, **shape}
    keys = KeyShape(num_heads=J, head_dim=D, **shape)
    factors = fastest_factors(
        [replace(random_unit(J * D, 1), keys=keys)],
        [None],
        [Reader(num_heads=H, read_mode="reconstruct")],
        (2, 4, 8, 16),
        60,
        [RowFormat()],
        CompressionConfig(objective=objective, device_profile=f"{bandwidth}:{matrix_rate}"),
    )
    return factors[0][0].method


def test_where_bytes_bound_the_joint_latent_loses_least() -> None:
    assert _chosen("speed", bandwidth=1.0, matrix_rate=1e9) == "joint"


def test_where_operations_bound_keys_are_not_rebuilt_from_the_joint_latent() -> None:
    assert _chosen("speed", bandwidth=1e9, matrix_rate=1.0) == "rotate"
    assert _chosen("speed", 1e9, 1.0, cannot_rotate="no") == "per_head"


def test_auto_does_not_pay_for_speed_with_much_loss() -> None:
    # These moments correlate across heads and frequencies, all of which turn far within a block, so
    # that only the joint latent uses it.
    angles = torch.arange(64)[:, None] * torch.linspace(1, 2, D // 2).double()
    assert _chosen("auto", bandwidth=1e9, matrix_rate=1.0, block_angles=angles) == "joint"
    assert _chosen("speed", bandwidth=1e9, matrix_rate=1.0, block_angles=angles) != "joint"


def _preferred(*losses: tuple[float, float], **settings) -> list[str]:
    """What is preferred for modules whose joint latent loses the first number of nats, and whose
    rotated keys, which are read in a tenth of the time, lose the second."""
    found = [
        [
            Candidate(full=cast(Any, "joint"), loss=joint, seconds=10.0),
            Candidate(full=cast(Any, "rotate"), loss=rotate, seconds=1.0),
        ]
        for joint, rotate in losses
    ]
    config = CompressionConfig(**{"objective": "auto", **settings})
    return [str(candidate.full) for candidate in preferred(found, config)]


def test_auto_pays_for_speed_while_the_whole_model_loses_little() -> None:
    """Up to 0.002 nats per token, where it loses the least first."""
    assert _preferred((1e-4, 1e-3), (1e-4, 5e-4)) == ["rotate", "rotate"]
    assert _preferred((1e-4, 18e-4), (1e-4, 5e-4)) == ["joint", "rotate"]
    assert _preferred((1e-4, 18e-4), (1e-4, 3e-3)) == ["rotate", "joint"]
    assert _preferred((3e-3, 4e-3), (1e-4, 5e-4)) == ["rotate", "joint"]  # as 4 is close to 3
    assert _preferred((1.0, 9.0), objective="speed") == ["rotate"]
    # Losses in other metrics are no nats.
    assert _preferred((1e-4, 1e-3), metric="activation") == ["joint"]


def test_layers_without_rotation_stay_joint() -> None:
    assert _chosen("speed", 1e9, 1.0, rotary_dim=0, cannot_rotate="not rotated") == "joint"
