"""The plan of a decoder's own tokens beside that of what an encoder puts out."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid import convert_to_mla, plan_of
from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.plan import CompressionPlan
from tests.families.encoder_configs import tiny_model


@pytest.mark.parametrize("ratio", [2.0, 4.0, 8.0])
def test_each_part_has_the_ratio_of_its_own_bytes(ratio: float) -> None:
    model, _ = convert_to_mla(tiny_model("bart"), ratio, use_calibration=False, verbose=False)
    plan = plan_of(model)
    assert plan.cross is not None
    for part in (plan, plan.cross):
        assert part.source_bytes_per_token == 256
        assert 0.9 * 256 / ratio < part.bytes_per_token <= 256 / ratio
    assert CompressionPlan.from_dict(plan.to_dict()) == plan


def test_exact_tokens_are_of_the_decoder_alone() -> None:
    model, _ = convert_to_mla(
        tiny_model("bart"),
        4.0,
        use_calibration=False,
        exact_sinks=2,
        exact_window=3,
        verbose=False,
    )
    plan = plan_of(model)
    assert plan.cross is not None
    assert {(x.exact_sinks, x.exact_window) for x in plan.latents} == {(2, 3)}
    assert {(x.exact_sinks, x.exact_window) for x in plan.cross.latents} == {(0, 0)}
    assert not any(x.keeps_exact for x in plan.cross.latents)


def test_a_ratio_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(PlanError, match="compression_ratio=500"):
        convert_to_mla(tiny_model("bart"), 500.0, use_calibration=False, verbose=False)
