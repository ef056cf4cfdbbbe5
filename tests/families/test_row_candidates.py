"""Rows that are guessed from the structure of an attention."""

from __future__ import annotations

import pytest
from torch import nn

from cacheshrink_hybrid.conversion.self_check import FOREIGN_FAULTS
from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.families import FAMILIES, Family, family, model_spec, read_attention
from cacheshrink_hybrid.families.row_candidates import Candidate, candidates
from tests.families.tiny_configs import tiny_model


def sources(case: str) -> list[str]:
    return [candidate.source for candidate in candidates(tiny_model(case))]


def test_the_first_guess_differs_least_from_llama() -> None:
    assert sources("llama")[0] == 'Family(model_type="llama")'
    assert sources("gpt2")[0] == (
        'Family(model_type="gpt2", attention="transformer.h.{}.attn", '
        'projections=fused("c_attn"), output="c_proj", uses_rope=never)'
    )


def test_what_only_the_forward_says_is_guessed_both_ways() -> None:
    found = sources("hunyuan_v1_dense")
    for words in ("norms_follow_rotation=True", "norm_spans_heads=True", "uses_rope=never"):
        assert {words in source for source in found} == {True, False}
    assert all('norms=("query_layernorm", "key_layernorm")' in source for source in found)
    assert len(set(found)) == len(found)


def test_what_is_not_rotated_has_no_way_of_rotation() -> None:
    unrotated = [source for source in sources("hunyuan_v1_dense") if "never" in source]
    assert unrotated
    assert not any("follow" in s or "rotates_first" in s for s in unrotated)


def test_a_gate_is_a_layer_of_its_own_or_half_of_the_queries() -> None:
    assert all('gate="gate_proj"' in source for source in sources("afmoe"))
    assert all("gated=True" in source for source in sources("qwen3_next"))
    assert not any("gate" in source for source in sources("qwen3"))


@pytest.mark.parametrize("case", ["gpt_neox", "phi", "cohere2", "lfm2_moe", "olmo3"])
def test_a_printed_row_is_the_row_that_was_tried(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(case)

    def read(row: Family) -> list[tuple]:
        monkeypatch.setitem(FAMILIES, row.model_type, row)
        try:
            parts = read_attention(model, model_spec(model.config))
        except FOREIGN_FAULTS as error:  # a row that does not fit
            return [str(error)]
        return [
            (p.query.weight().tolist(), p.rotary is None, p.norms_follow_rotation) for p in parts
        ]

    for candidate in candidates(model):
        written: Family = eval(candidate.source, vars(family))
        assert read(written) == read(candidate.family)


def test_an_attention_without_projections_is_told_by_its_layers() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.k_proj = nn.Linear(8, 5)
        layer.self_attn.other = layer.self_attn.v_proj
        del layer.self_attn.v_proj
    with pytest.raises(UnsupportedModelError, match=r"no linear layers .*k_proj 5 x 8"):
        list(candidates(model))


def test_a_model_without_attention_has_no_candidates() -> None:
    with pytest.raises(UnsupportedModelError, match="no list of 2 layers with an attention"):
        next(iter(candidates(tiny_model("mamba2"))))


def test_a_candidate_is_written_as_it_stands_in_the_table() -> None:
    assert Candidate(Family(model_type="x"), ()).source == "Family()"
