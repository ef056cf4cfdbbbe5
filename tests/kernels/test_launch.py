"""What launchers know of a device that need not be there."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.kernels.launch import has_native_float8, has_warpgroups, recording


@pytest.mark.parametrize(
    ("capability", "float8", "warpgroups"),
    [
        (80, False, False),
        (89, True, False),
        (90, True, True),
        (100, True, True),
        (120, True, False),
    ],
)
def test_devices_by_their_compute_capability(
    capability: int, float8: bool, warpgroups: bool
) -> None:
    device = torch.device("meta")
    with recording(capability) as launches:
        assert has_native_float8(device) == float8
        assert has_warpgroups(device) == warpgroups
    assert launches == []
