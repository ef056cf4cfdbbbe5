"""The benchmark of hybrid decoding: what it prints, and that it refuses to time a wrong model."""

from __future__ import annotations

import json

import pytest
import torch

from scripts import bench_hybrid_decode
from scripts.benchmark import GateError

SENTENCES = ["A sentence that goes on and on, and then another one which is shorter. " * 3]
TINY = ["--hidden-size", "64", "--context", "8", "--num-new", "2", "--repetitions", "1"]
TINY += ["--threads", "1"]


@pytest.fixture(autouse=True)
def short_calibration(monkeypatch) -> None:
    monkeypatch.setattr(bench_hybrid_decode, "training_text", lambda: SENTENCES)


def test_prints_every_setting_next_to_the_source(capsys) -> None:
    assert bench_hybrid_decode.main([*TINY, "--codes", "float16:1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [record["model"] for record in result["runs"]]
    assert names == [
        "source",
        "cache_bits=16, states float16:1",
        "cache_bits=auto, states float16:1",
    ]
    assert all(record["decode_tokens_per_second"] > 0 for record in result["runs"])
    assert result["runs"][0]["decode_ratio"] == 1
    for plans in result["state_plans"].values():
        assert {segment["code"] for plan in plans for segment in plan["segments"]} == {"float16"}


def test_wrong_logits_are_not_timed(monkeypatch) -> None:
    right = bench_hybrid_decode.converted

    def wrong(*args, **settings):
        model = right(*args, **settings)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.01)
        return model

    monkeypatch.setattr(bench_hybrid_decode, "converted", wrong)
    with pytest.raises(GateError, match="full rank differs"):
        bench_hybrid_decode.main(TINY)
