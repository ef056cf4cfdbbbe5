"""Every format takes the bits that it says, and loses of Gaussian vectors what it should."""

from __future__ import annotations

import pytest
import torch

from scripts.peers.codec import Cast, MinMax, hadamard, pack, unpack
from scripts.peers.kivi import PerChannel
from scripts.peers.nvfp4 import EDGES, NUMBERS, NVFP4
from scripts.peers.turboquant import RotatedKeys, normal_levels
from scripts.peers.vllm_int4 import Int4PerTokenHead

SIZE = 64
# Bits per channel at 64 channels, and squared error in percent of what a vector holds.
FORMATS = {
    "float16": (Cast(torch.float16), 16, 0.0),
    "e4m3": (Cast(torch.float8_e4m3fn), 8, 0.070),
    "even steps, 8 bits": (MinMax(8), 8.5, 0.003),
    "even steps, 4 bits": (MinMax(4), 4.5, 0.80),
    "even steps, 3 bits": (MinMax(3), 3.5, 3.70),
    "even steps, 4 bits, groups": (MinMax(4, 32), 5, 0.615),
    "even steps, 2 bits, groups": (MinMax(2, 32), 3, 15.4),
    "KIVI keys, 4 bits": (PerChannel(4), 5, 0.615),
    "KIVI keys, 2 bits": (PerChannel(2), 3, 15.4),
    "TurboQuant keys, 4 bits": (RotatedKeys(4, SIZE), 4.25, 0.886),
    "TurboQuant keys, 3 bits": (RotatedKeys(3, SIZE), 3.25, 3.26),
    "int4_per_token_head": (Int4PerTokenHead(SIZE), 4.5, 0.833),
    "nvfp4": (NVFP4(), 4.5, 0.912),
}


def gaussian(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, 256, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FORMATS)
def test_bits_and_error(name: str) -> None:
    codec, bits, error = FORMATS[name]
    x = gaussian()
    codes = codec.encode(x)
    assert sum(tensor.nbytes for tensor in codes.values()) * 8 == bits * x.numel()
    decoded = codec.decode(codes)
    assert decoded.dtype == torch.float32 and decoded.shape == x.shape
    found = 100 * ((decoded - x).square().sum() / x.square().sum()).item()
    assert found == pytest.approx(error, rel=0.03, abs=0.001)


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_decoded_stays_and_zeros_are_zero(name: str) -> None:
    """Coding again what was read back changes it by little beside the first loss."""
    codec, _, error = FORMATS[name]
    once = codec.decode(codec.encode(gaussian()))
    twice = codec.decode(codec.encode(once))
    again = 100 * ((twice - once).square().sum() / once.square().sum()).item()
    assert again <= max(error, 0.001)
    zeros = torch.zeros(1, 1, 32, SIZE)
    assert torch.equal(codec.decode(codec.encode(zeros)), zeros)


@pytest.mark.parametrize("name", [n for n in FORMATS if not n.startswith("KIVI")])
def test_each_vector_is_coded_for_itself(name: str) -> None:
    codec, _, _ = FORMATS[name]
    x = gaussian()
    x[..., 1:, :] *= 100
    alone = codec.decode(codec.encode(x[..., :1, :]))
    torch.testing.assert_close(codec.decode(codec.encode(x))[..., :1, :], alone)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_codes_come_back(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (3, 5, 24), generator=generator)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 5, 3 * bits)
    assert torch.equal(unpack(packed, bits), codes)


def test_keys_rotated_by_hadamard_keep_their_norm() -> None:
    matrix = hadamard(SIZE)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(SIZE))
    spike = torch.zeros(1, 1, 1, SIZE)
    spike[..., 5] = 30.0  # an outlying channel, which every format of even steps is coarse for
    codec = RotatedKeys(4, SIZE)
    decoded = codec.decode(codec.encode(spike))
    torch.testing.assert_close(decoded.norm(), spike.norm(), rtol=1e-3, atol=0)


def test_levels_are_the_best_of_a_normal_distribution() -> None:
    # Max, Quantizing for minimum distortion (1960), table I.
    expected = torch.tensor([0.2451, 0.7560, 1.3439, 2.1519])
    levels = normal_levels(3)
    torch.testing.assert_close(levels[4:], expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(levels, -levels.flip(0))


def test_numbers_of_four_bits_are_rounded_to_the_nearest() -> None:
    assert len(NUMBERS) == 15
    x = torch.linspace(-6, 6, 1001)
    nearest = NUMBERS[(x[:, None] - NUMBERS).abs().argmin(-1)]
    coded = NUMBERS[torch.bucketize(x, EDGES)]
    torch.testing.assert_close((x - coded).abs(), (x - nearest).abs())
