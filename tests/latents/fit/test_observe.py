"""What is recomputed on the way back, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cacheshrink_hybrid.calibration.calibrate import calibrate, decoder_layers
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.fit import observe
from cacheshrink_hybrid.latents.fit.observe import KEPT_RESULTS, frozen_and_checkpointed
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids


class Count(TorchDispatchMode):
    """Counts the operations whose results may be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in KEPT_RESULTS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "keep", "again"),
    [
        (torch.bfloat16, True, False),
        (torch.bfloat16, False, True),
        (torch.float32, True, True),
    ],
)
def test_products_of_16_bits_are_not_computed_again(dtype, keep: bool, again: bool) -> None:
    model = tiny_model("llama").to(dtype)
    (layer,) = layers = decoder_layers(model)[:1]
    x = torch.randn(1, 5, model.config.hidden_size, dtype=dtype, requires_grad=True)
    angles = model.model.rotary_emb(x, torch.arange(5)[None])

    def run() -> tuple[int, torch.Tensor]:
        y = layer(x, position_embeddings=angles)
        with Count() as counted:
            (gradient,) = torch.autograd.grad(y.float().sum(), x)
        return counted.count, gradient

    with frozen_and_checkpointed(model, ()):
        plain, due = run()
    with frozen_and_checkpointed(model, layers, keep_products=keep):
        count, found = run()
    assert torch.equal(found, due)
    assert (count > plain) == again


@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen3_next", "zamba", "gpt_oss"])
def test_statistics_do_not_depend_on_what_is_kept(case: str, monkeypatch) -> None:
    model = tiny_model(case).bfloat16()
    parts = read_attention(model, model_spec(model.config))
    kept = calibrate(model, parts, calibration_ids(3, 10), metric="fisher")
    monkeypatch.setattr(observe, "KEPT_RESULTS", set())
    computed_anew = calibrate(model, parts, calibration_ids(3, 10), metric="fisher")
    for one, other in zip(kept, computed_anew, strict=True):
        for name in ("mean", "covariance", "metric"):
            assert torch.equal(getattr(one, name), getattr(other, name))
