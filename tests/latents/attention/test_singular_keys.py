"""Keys that are values times a weight (Gemma 4): what is coded is what one pass codes.

A latent of both has directions in which nothing varies. What is stored of these must not be
rounding, which is another in every pass.
"""

from __future__ import annotations

from typing import Any

import pytest

from cacheshrink_hybrid import CompressionConfig, convert_model, convert_to_mla
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, equal_pieces, logits_in_pieces, logits_of, random_ids

NUM_TOKENS = 24
NO_CODE_DIFFERS = 1e-4
"""Of most tokens: a value may lie at the edge between two codes by chance."""
ROTATIONS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1e6,
    },
}
"""Of keys and values, 48 channels, no more than 30 vary apart, and 32 are stored."""
SPEED = {"objective": "speed"}
WISHES: dict[str, dict[str, Any]] = {
    name: {"compression_method": name} for name in ("rotate_joint", "rotate", "separate", "joint")
}


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("wish", [*WISHES.values(), SPEED], ids=[*WISHES, "speed"])
def test_coded_decoding_agrees_with_one_pass(wish: dict[str, Any], calibrated: bool) -> None:
    model = tiny_model("gemma4_text", global_head_dim=24, rope_parameters=ROTATIONS)
    coded = {"compression_ratio": 4.0, "exact_sinks": 0, "exact_window": 0, **wish}
    if calibrated:
        convert_model(model, CompressionConfig(metric="activation", **coded), calibration_ids())
    else:
        convert_to_mla(model, use_calibration=False, verbose=False, **coded)
    ids = random_ids(2, NUM_TOKENS)
    due = logits_of(model, ids)
    found = logits_in_pieces(model, ids, equal_pieces(NUM_TOKENS, 1))
    differences = (found - due).abs().amax(-1) / due.std()
    assert differences.median() < NO_CODE_DIFFERS
