"""What a device can do, for choosing between ways to read the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What a device can do.

    Attributes:
        bandwidth: bytes per second from memory.
        matrix_rate: floating-point operations per second of dense 16-bit (CPU: 32-bit) products.
        fused: all that is done with a slot of the cache is done while it is near the core, however
            wide its rows are; elsewhere wide rows are read in passes with scratch between them.
    """

    name: str
    bandwidth: float
    matrix_rate: float
    fused: bool = False

    @classmethod
    def parse(cls, text: str) -> DeviceProfile:
        """A name of `DEVICE_PROFILES`, or `BYTES_PER_SECOND:OPERATIONS_PER_SECOND`.

        Raises:
            ConfigError: for anything else.
        """
        if text in DEVICE_PROFILES:
            return DEVICE_PROFILES[text]
        try:
            bandwidth, matrix_rate = (float(part) for part in str(text).split(":"))
        except ValueError:
            bandwidth = matrix_rate = 0.0
        if not (0 < bandwidth < float("inf") and 0 < matrix_rate < float("inf")):
            raise ConfigError(
                f"device_profile={text!r} is unknown; choose one of {', '.join(DEVICE_PROFILES)}, "
                "or give BYTES_PER_SECOND:OPERATIONS_PER_SECOND such as 3.35e12:9.9e14"
            )
        return cls(name=text, bandwidth=bandwidth, matrix_rate=matrix_rate)

    @classmethod
    def of(cls, device: torch.device) -> DeviceProfile:
        """That of a device: of CPUs the one there is, of GPUs the one with their name, and where no
        name fits, or on other devices, that of an H100."""
        if device.type == "cpu":
            return DEVICE_PROFILES["CPU"]
        name = ""
        if device.type == "cuda":
            import torch

            name = torch.cuda.get_device_name(device)
        return next((row for row in DEVICE_PROFILES.values() if row.name in name), _OTHERS)


DEVICE_PROFILES = {
    profile.name: profile
    for profile in (
        DeviceProfile(name="H200", bandwidth=4.8e12, matrix_rate=9.9e14),
        DeviceProfile(name="H100", bandwidth=3.35e12, matrix_rate=9.9e14),
        DeviceProfile(name="A100", bandwidth=2.0e12, matrix_rate=3.1e14),
        DeviceProfile(name="CPU", bandwidth=2.0e10, matrix_rate=2.0e11, fused=True),
    )
}
"""Data-sheet figures of accelerators (dense bfloat16), and those of a small two-core server."""
_OTHERS = DEVICE_PROFILES["H100"]
