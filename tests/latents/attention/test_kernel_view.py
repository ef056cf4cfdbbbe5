"""What kernels are told of a head, and what they are not for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.codecs import RowCodec, RowFormat
from cacheshrink_hybrid.errors import KernelUnavailableError
from cacheshrink_hybrid.latents.attention.kernel_view import latent_read, layout_of_codec, why_not
from tests.latents.attention.heads import head_of


@pytest.mark.parametrize(
    "row_format",
    [
        RowFormat(alignment=16),
        RowFormat(gains=False),
        RowFormat(byte="e5m2", half="bfloat16"),
        RowFormat(byte="e4m3"),
    ],
)
def test_layout_of_codec(row_format: RowFormat) -> None:
    codec = RowCodec(((16, 16), (24, 8), (8, 4), (8, 2)), row_format)
    layout = layout_of_codec(codec)
    assert (layout.row_bytes, layout.head_byte) == (codec.row_bytes, codec.head_byte)
    assert layout.num_channels == codec.num_channels


def test_scales_per_token_are_refused() -> None:
    with pytest.raises(KernelUnavailableError, match="scales='token'"):
        layout_of_codec(RowCodec(((16, 8),), RowFormat(scales="token")))


def test_norms_over_all_heads_are_refused() -> None:
    with pytest.raises(KernelUnavailableError, match="mean square of a head's channels"):
        latent_read(head_of("olmo2", "joint"), 1, torch.empty(0))


def test_layers_that_keep_nothing_of_their_values_are_refused() -> None:
    """As small budgets make them; `auto` then leaves them to torch."""
    head = head_of("llama", "joint")
    assert why_not(head, torch.empty(0)) is None
    reason = why_not(replace(head, plan=replace(head.plan, value_rank=0)), torch.empty(0))
    assert reason is not None and "value_rank=0" in reason
