"""A save writes a model card where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from transformers import PreTrainedModel

from cacheshrink_hybrid import convert_to_mla, load_mla_model, plan_of
from cacheshrink_hybrid.model_card import model_card, public_name
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, pair


def card_of(model: PreTrainedModel) -> str:
    return model_card(model, plan_of(model))


def test_sizes_and_loss() -> None:
    model = pair("llama", "auto", ratio=4.0, metric="activation").converted
    plan, card = plan_of(model), card_of(model)
    assert f"| {plan.source_bytes_per_token:,} | {plan.bytes_per_token:,} (" in card
    assert f"{plan.total_loss:.3g} of the metric 'activation'" in card
    assert "states" not in card
    assert "load_mla_model" in card


def test_states_alone() -> None:
    model = converted_copy(tiny_model("mamba2"), state_ratio=2.0, metric="activation")
    plan, card = plan_of(model), card_of(model)
    assert f"| {plan.source_state_bytes:,} | {plan.state_bytes:,} (" in card
    assert "bytes per token" not in card
    assert f"{plan.total_loss:.3g} of the metric" in card


def test_no_calibration() -> None:
    model = converted_copy(tiny_model("llama"), 4.0, "auto", metric="none")
    assert "no loss is predicted" in card_of(model)


def test_source_and_license_by_path(tmp_path: Path) -> None:
    """The path itself is nobody's business; it stays known through saves."""
    tiny_model("llama").save_pretrained(tmp_path / "tiny-llama")
    head = "---\nlicense: mit\n---\n# Tiny\n"
    (tmp_path / "tiny-llama" / "README.md").write_text(head)
    model = convert_to_mla(
        tiny_model("llama").from_pretrained(tmp_path / "tiny-llama"),
        4.0,
        use_calibration=False,
        verbose=False,
    )[0]
    model.save_pretrained(tmp_path / "first")
    text = (tmp_path / "first" / "README.md").read_text()
    assert "`tiny-llama`, rewritten by" in text
    assert str(tmp_path) not in text
    assert str(tmp_path) not in (tmp_path / "first" / "config.json").read_text()
    assert metadata_load(tmp_path / "first" / "README.md") == {
        "library_name": "transformers",
        "license": "mit",
        "tags": ["cacheshrink_hybrid"],
    }
    load_mla_model(tmp_path / "first")[0].save_pretrained(tmp_path / "second")
    assert "`tiny-llama`, rewritten by" in (tmp_path / "second" / "README.md").read_text()


def test_name_on_the_hub() -> None:
    model = converted_copy(tiny_model("llama"), 4.0, "auto", metric="none")
    model.source_name = "someone/tiny"
    assert "base_model: someone/tiny\n" in card_of(model)


@pytest.mark.parametrize("head", ["---\n: {\n---\n", "no head", "---\nlicense: [a, b]\n---\n", ""])
def test_cards_without_a_license(head: str, tmp_path: Path) -> None:
    model = converted_copy(tiny_model("llama"), 4.0, "auto", metric="none")
    (tmp_path / "README.md").write_text(head)
    model.source_name = str(tmp_path)
    assert "license:" not in card_of(model)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("someone/tiny", "someone/tiny"), ("/home/me/tiny", "tiny"), ("gpt2", "gpt2"), ("", "")],
)
def test_public_names(name: str, expected: str) -> None:
    assert public_name(name) == expected
