"""The benchmark of decoding after long contexts: caches filled from outside are those of a prompt,
folded queries give what SDPA gives, and nothing that reads wrongly is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cacheshrink_hybrid import HybridCache, load_mla_model, make_cache, save_mla_model
from scripts import bench_contexts
from scripts.bench_contexts import FOLDED, filled, growth, register_folded_attention
from scripts.benchmark import GateError, cached_logits
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("bench")
    source = tiny_model("llama", max_position_embeddings=512)
    source.save_pretrained(place / "source")
    save_mla_model(converted_copy(source, 4.0, "auto"), None, place / "4x")
    return place / "source", place / "4x"


def test_times_the_source_and_its_conversion(folders: tuple[Path, Path], capsys) -> None:
    asked = [*map(str, folders), "--contexts", "40", "80", "--batches", "1", "2"]
    asked += ["--num-new", "2", "--repetitions", "1", "--threads", "1"]
    assert bench_contexts.main(asked) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = [(r["reader"], r["batch"], r["context"]) for r in result["records"]]
    assert found == [(n, b, c) for b in (1, 2) for c in (40, 80) for n in ("source", "4x")]
    assert all(r["ms_per_step"] > 0 and r["cache_bytes"] > 0 for r in result["records"])
    assert [r["ratio"] for r in result["records"] if r["reader"] == "source"] == [1.0] * 4


def test_what_is_filled_is_as_long_as_a_prompt(folders: tuple[Path, Path]) -> None:
    for model in (AutoModelForCausalLM.from_pretrained(folders[0]), load_mla_model(folders[1])[0]):
        cache = filled(model, 2, 70, seed=0)
        assert cache.get_seq_length() == 70
        if isinstance(cache, HybridCache):
            read = make_cache(model)
            cached_logits(model, torch.ones(2, 70, dtype=torch.long), 70, read)
            assert cache.nbytes() == read.nbytes()


@torch.no_grad()
def test_folded_queries(folders: tuple[Path, Path]) -> None:
    register_folded_attention()
    ids = torch.arange(24)[None]
    found = [
        cached_logits(
            AutoModelForCausalLM.from_pretrained(folders[0], attn_implementation=name), ids, chunk
        )[0]
        for name, chunk in (("sdpa", 24), (FOLDED, 8), (FOLDED, 1))
    ]
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], atol=1e-5, rtol=1e-4)


def test_what_reads_wrongly_is_not_timed(folders: tuple[Path, Path], monkeypatch) -> None:
    right = bench_contexts.cached_logits

    def wrong(model, ids, chunk_length, cache):
        logits, cache = right(model, ids, chunk_length, cache)
        return (logits + 1 if cache.backend == "torch" else logits), cache

    monkeypatch.setattr(bench_contexts, "cached_logits", wrong)
    with pytest.raises(GateError, match="away from what torch decodes"):
        bench_contexts.main([*map(str, folders), "--contexts", "40"])


def test_growth_is_beside_that_of_the_source() -> None:
    records = [
        {"reader": reader, "batch": 1, "context": context, "ms_per_step": ms}
        for reader, times in (("source", (9, 10, 14)), ("4x", (9, 12, 14)))
        for context, ms in zip((512, 2048, 4048), times, strict=True)
    ]
    assert growth(records) == [
        {"reader": "source", "batch": 1, "ms_per_1000_tokens": 2.0, "over_source": 1.0},
        {"reader": "4x", "batch": 1, "ms_per_1000_tokens": 1.0, "over_source": 0.5},
    ]
