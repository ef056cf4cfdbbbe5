"""A save writes a model card, but never over somebody else's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from transformers import PreTrainedModel

from cacheshrink_hybrid import convert_to_mla, load_mla_model, plan_of, save_mla_model
from cacheshrink_hybrid.checkpoint.model_card import OWN_CARD, model_card
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.plan import key_value_prediction, state_prediction
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, pair
from tests.texts import TEXTS, word_tokenizer


def card_of(model: PreTrainedModel) -> str:
    return model_card(model, plan_of(model))


def test_sizes_and_loss() -> None:
    model = pair("llama", "auto", ratio=4.0, metric="activation").converted
    plan, card = plan_of(model), card_of(model)
    assert f"| {plan.source_bytes_per_token:,} | {plan.bytes_per_token:,} (" in card
    assert f"Keys and values: {key_value_prediction(plan)}, all read coded." in card
    assert "states" not in card
    assert "load_mla_model" in card


def test_states_alone() -> None:
    model = converted_copy(tiny_model("mamba2"), state_ratio=2.0, metric="activation")
    plan, card = plan_of(model), card_of(model)
    assert f"| {plan.source_state_bytes:,} | {plan.state_bytes:,} (" in card
    assert "bytes per token" not in card
    assert f"Recurrent states: {state_prediction(plan)}." in card


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


PATHS = [
    ".",
    "./x",
    "../x",
    "my model",
    "a/b c",
    "a/b",
    "model--v1",
    "x.git",
    "mödel",
    "~nobody",
    "src/",
    "x" * 97,
]


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_sources_by_relative_paths(path: str, gone: bool, tmp_path: Path, monkeypatch) -> None:
    """They are no names on the Hub, also from another directory, and when they are gone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny_model("llama").save_pretrained(path)
    Path(path, "README.md").write_text("---\nlicense: mit\n---\n")
    model, _ = convert_to_mla(
        path, 4.0, tokenizer=word_tokenizer(), use_calibration=False, verbose=False
    )
    if gone:
        shutil.rmtree(Path(path).resolve())
    monkeypatch.chdir(tmp_path)
    last = Path("here", path).resolve().name
    for target in ("first", "second"):  # the second by the name that the first one keeps
        model.save_pretrained(target)
        card = Path(target, "README.md").read_text(encoding="utf-8")
        assert f"`{last}`, rewritten by" in card
        assert "base_model" not in card
        assert ("license: mit" in card) == (target == "first" and not gone)
        model, _ = load_mla_model(target)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    model = converted_copy(tiny_model("llama"), 4.0, "auto", metric="none")
    model.source_name = "/home/\udcff"
    model.save_pretrained(tmp_path)
    assert "`?`, rewritten by" in (tmp_path / "README.md").read_text()


def test_a_card_that_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    def forbidden(path: Path) -> dict:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("cacheshrink_hybrid.checkpoint.model_card.metadata_load", forbidden)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    model = converted_copy(tiny_model("llama"), 4.0, "auto", metric="none")
    model.source_name = str(tmp_path)
    assert "license:" not in card_of(model)


def test_the_loss_is_the_one_that_the_plan_prints() -> None:
    """Of text that was kept from fitting, where there is such text."""
    model, _ = convert_to_mla(
        tiny_model("llama"),
        4.0,
        tokenizer=word_tokenizer(),
        calibration_texts=[text * 4 for text in TEXTS],
        verbose=False,
    )
    plan, card = plan_of(model), card_of(model)
    assert plan.held_out_loss is not None
    assert f"predicted loss {plan.held_out_loss:.4g} nats/token on held-out calibration" in card
    fitted = replace(plan, latents=tuple(replace(p, held_out_loss=None) for p in plan.latents))
    expected = f"predicted loss {plan.predicted_loss:.4g} nats/token on the calibration text itself"
    assert expected in model_card(model, fitted)
    assert expected in fitted.table(model_spec(model.config))


def test_own_card_is_written_anew(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    for ratio in (2.0, 8.0):
        model = converted_copy(tiny_model("llama"), ratio, "auto", metric="none")
        save_mla_model(model, None, tmp_path)
        assert card.read_text() == card_of(model)
    kept = card.read_text().replace(OWN_CARD, "Mine now.")
    card.write_text(kept)
    save_mla_model(converted_copy(tiny_model("llama"), 4.0, "auto", metric="none"), None, tmp_path)
    assert card.read_text() == kept
