"""Keys that are rebuilt while latents are read, joint and per head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton.language as tl

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.latents.append import latent_append
from cacheshrink_hybrid.kernels.latents.decode import KeyUp, LatentRead, kernel, latent_decode
from cacheshrink_hybrid.kernels.latents.decode.reference import rebuilt_keys
from cacheshrink_hybrid.kernels.latents.row_reference import gather_latents

from ...cases import combined
from ...checks import assert_close
from ...pools import empty_rows, filled_rows, frame_tables, slots_of

J = 2
LENS = [45, 0, 8, 17]

# Layout, rank of a head's keys, value rank, per head, head dim, rotated channels.
CASES = {
    "joint-mixed": (RowFormat().layout([(16, 16), (32, 8), (16, 4)]), 64, 64, False, 32, 32),
    "joint-partial": (RowFormat().layout([(64, 8)]), 40, 48, False, 24, 8),
    "joint-unrotated": (RowFormat().layout([(32, 4)]), 32, 32, False, 20, 0),
    "per-head-mixed": (
        RowFormat(alignment=16).layout([(16, 16), (32, 8), (16, 6), (16, 1), (24, 4)]),
        40,
        24,
        True,
        16,
        16,
    ),
    # Runs whose heads meet within a byte.
    "per-head-split-bytes": (
        RowFormat().layout([(6, 5), (12, 3), (40, 8), (24, 6)]),
        29,
        24,
        True,
        20,
        8,
    ),
    "joint-normalised": (RowFormat().layout([(32, 8)]), 24, 32, False, 20, 12),
    "per-head-float8": (RowLayout.of_runs([(72, Kind.E4M3)]), 20, 32, True, 32, 16),
}


def _key_up(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> KeyUp:
    _, rank, _, per_head, head_dim, rotated = CASES[name]
    slots = torch.arange(64, device=device)
    angles = slots[:, None] * 0.7 ** torch.arange(rotated // 2, device=device)
    return KeyUp(
        weight=(torch.randn(J, head_dim, rank, device=device) / rank**0.5).to(dtype),
        bias=torch.randn(J, head_dim, device=device).to(dtype),
        cos=angles.cos() if rotated else None,
        sin=angles.sin() if rotated else None,
        norm_weight=torch.rand(head_dim, device=device) + 0.5 if "normalised" in name else None,
        norm_epsilon=0.5 if "normalised" in name else 0.0,
        per_head=per_head,
    )


def _read(name: str, key_up: KeyUp, **options) -> LatentRead:
    _, rank, value_rank, per_head, head_dim, _ = CASES[name]
    return LatentRead(
        key_rank=rank * J if per_head else rank,
        value_rank=value_rank,
        scale=head_dim**-0.5,
        key_up=key_up,
        **options,
    )


@pytest.mark.parametrize(("name", "num_splits"), combined(CASES, [1, 2]))
def test_equals_reference(name: str, num_splits: int, device: torch.device) -> None:
    rows, table, context = filled_rows(CASES[name][0], LENS, device=device, outliers=False)
    read = _read(name, _key_up(name, device), softcap=4.0, window=30)
    query = torch.randn(len(LENS), 2, 3 * J, CASES[name][4], device=device)
    due = latent_decode(query, rows, table, context, read=read, backend="torch")
    got = latent_decode(
        query, rows, table, context, read=read, num_splits=num_splits, backend="triton"
    )
    assert_close(got[0], due[0])
    assert_close(got[1], due[1])


def test_16_bit_weights(device: torch.device) -> None:
    name = "joint-mixed"
    rows, table, context = filled_rows(CASES[name][0], LENS, device=device, outliers=False)
    key_up = _key_up(name, device, torch.bfloat16)
    query = torch.randn(len(LENS), 1, 4 * J, 32, device=device).bfloat16()
    read = _read(name, key_up)
    due = latent_decode(query.float(), rows, table, context, read=read, backend="torch")
    got = latent_decode(query, rows, table, context, read=read, backend="triton")
    assert_close(got[0], due[0].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_of_all_sizes(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gains from the smallest to the largest: far tokens, with keys up to 1e6, pass no operand of
    16 bits, in which the interpreter would not multiply by itself."""
    operands = {torch.float32: tl.float32, torch.bfloat16: tl.float16}
    monkeypatch.setattr(kernel, "dot_dtype", lambda dtype, **_: operands[dtype])
    layout = RowFormat().layout([(48, 5)])
    rows = empty_rows(layout, device=device, num_frames=6)
    latent = torch.randn(40, 48, device=device) * torch.logspace(-3, 5, 40, device=device)[:, None]
    table = frame_tables([40], 8, num_frames=6)
    latent_append(latent, rows, slots_of(table, [40], 8).to(device), backend="torch")
    key_up = KeyUp(
        weight=torch.randn(J, 16, 32, device=device), bias=torch.randn(J, 16, device=device)
    )
    read = LatentRead(key_rank=32, value_rank=32, scale=1e-7, key_up=key_up)
    query = torch.randn(1, 1, J, 16, device=device).to(dtype)
    context = torch.tensor([40], dtype=torch.int32, device=device)
    options = {"read": read, "frame_table": table.to(device), "context_lens": context}
    due, _ = latent_decode(query.float(), rows, backend="torch", **options)
    got, _ = latent_decode(query, rows, backend="triton", **options)
    assert_close(got, due.to(dtype))


def test_reference_is_attention_with_rotated_keys() -> None:
    """Rebuilding keys in the latents' basis gives the attention that the keys came from."""
    num_tokens, head_dim, half = 19, 12, 4
    keys, values = torch.randn(J, num_tokens, head_dim), torch.randn(num_tokens, 16)
    layout = RowLayout.of_runs([(J * head_dim + 16, Kind.FLOAT16)])
    # The latent is the keys themselves, head after head.
    latent = torch.cat([keys.transpose(0, 1).reshape(num_tokens, -1), values], dim=-1).half()
    for per_head in (True, False):
        rows = empty_rows(layout, device=latent.device, num_frames=4)
        table = frame_tables([num_tokens], 8, num_frames=4)
        latent_append(latent, rows, slots_of(table, [num_tokens], 8), backend="torch")
        weight = torch.eye(head_dim).expand(J, -1, -1)
        if not per_head:
            weight = torch.eye(J * head_dim).view(J, head_dim, -1)
        angles = torch.arange(32)[:, None] * 0.5 ** torch.arange(half)
        key_up = KeyUp(
            weight=weight,
            bias=torch.zeros(J, head_dim),
            cos=angles.cos(),
            sin=angles.sin(),
            per_head=per_head,
        )
        read = LatentRead(key_rank=J * head_dim, value_rank=16, scale=0.3, key_up=key_up)
        query = torch.randn(1, 1, J, head_dim)
        context = torch.tensor([num_tokens], dtype=torch.int32)
        got, _ = latent_decode(query, rows, table, context, read=read, backend="torch")
        pairs = torch.complex(*keys.half().float()[..., : 2 * half].split(half, dim=-1))
        turned = pairs * torch.polar(torch.ones(num_tokens, half), angles[:num_tokens])
        rotated = torch.cat(
            [turned.real, turned.imag, keys.half().float()[..., 2 * half :]], dim=-1
        )
        due = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2), rotated[None], values.half().float().expand(1, J, -1, -1),
            scale=0.3,
        )  # fmt: skip
        torch.testing.assert_close(got.transpose(1, 2), due, rtol=1e-4, atol=1e-4)


def test_reference_normalises_keys_before_it_rotates_them() -> None:
    layout, head_dim, half = RowLayout.of_runs([(16, Kind.FLOAT16)]), 12, 4
    rows, table, _ = filled_rows(layout, [9], device=torch.device("cpu"), outliers=False)
    norm = torch.nn.RMSNorm(head_dim, eps=0.3)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    plain = KeyUp(weight=torch.randn(J, head_dim, 16), bias=torch.randn(J, head_dim))
    angles = torch.arange(9)[:, None] * 0.5 ** torch.arange(half)
    normed = replace(
        plain, cos=angles.cos(), sin=angles.sin(), norm_weight=norm.weight, norm_epsilon=0.3
    )
    latent, _ = gather_latents(rows, table, 9)
    due = norm(rebuilt_keys(latent, layout, plain))
    first, second, rest = due.split([half, half, head_dim - 2 * half], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    due = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    torch.testing.assert_close(rebuilt_keys(latent, layout, normed), due)


def test_reference_finds_the_channels_of_a_head_in_every_run() -> None:
    layout = RowFormat().layout([(6, 8), (12, 4), (8, 8)])
    latent = torch.randn(1, 5, 26)
    key_up = KeyUp(weight=torch.eye(9).repeat(J, 1, 1), bias=torch.zeros(J, 9), per_head=True)
    keys = rebuilt_keys(latent, layout, key_up)
    for head in range(J):
        first, second = latent[..., 3 * head :][..., :3], latent[..., 6 + 6 * head :][..., :6]
        torch.testing.assert_close(keys[:, head], torch.cat([first, second], dim=-1))


def test_bad_arguments(device: torch.device) -> None:
    name = "joint-mixed"
    rows, table, context = filled_rows(CASES[name][0], [9], device=device)
    key_up = _key_up(name, device)
    read = _read(name, key_up)
    query = torch.randn(1, 1, J, 32, device=device)
    with pytest.raises(ConfigError, match="3 query heads on 2 key heads"):
        latent_decode(query[:, :, :1].expand(1, 1, 3, 32), rows, table, context, read=read)
    with pytest.raises(ConfigError, match="key_up reads 64 channels"):
        LatentRead(key_rank=32, value_rank=64, scale=1.0, key_up=key_up)
    with pytest.raises(ConfigError, match="cos and sin go together"):
        KeyUp(weight=key_up.weight, bias=key_up.bias, cos=key_up.cos)
    uneven = LatentRead(
        key_rank=36,
        value_rank=20,
        scale=1.0,
        key_up=KeyUp(weight=key_up.weight[:, :, :18], bias=key_up.bias, per_head=True),
    )
    heads = RowFormat().layout([(3, 8), (61, 8)])
    rows, table, context = filled_rows(heads, [9], device=device)
    with pytest.raises(ConfigError, match="not shared evenly by 2 heads"):
        latent_decode(query, rows, table, context, read=uneven, backend="triton")
