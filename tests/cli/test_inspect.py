"""What the program `inspect` says of models that are not converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.families import model_spec, refusal

WHOLE = ("blip-2", "fuyu", "kimi_k25", "llama4", "qwen2_5_vl", "qwen2_audio", "qwen3_5", "voxtral")
"""Models with other parts, whose text model's layout is known and that are not converted."""


def written(folder: Path, model_type: str, **values: Any) -> str:
    file = folder / f"{model_type}.json"
    AutoConfig.for_model(model_type, **values).to_json_file(file)
    return str(file)


def why(file: str) -> str:
    """What a conversion says of a config."""
    with pytest.raises(UnsupportedModelError) as error:
        model_spec(AutoConfig.from_pretrained(file))
    return str(error.value)


@pytest.mark.parametrize("model_type", WHOLE)
def test_a_whole_that_is_not_converted_is_shown_with_the_reason(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, model_type)
    assert main(["inspect", file]) == 0
    shown = capsys.readouterr().out
    assert f"{model_type}: " in shown and "KV bytes per token" in shown
    assert shown.count(why(file)) == 1


def test_inspect_and_convert_agree_about_every_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = {"supported": 0, "shown": 0, "refused": 0}
    for model_type in sorted(
        {
            *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
            *MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        }
    ):
        try:
            file = written(tmp_path, model_type)
            reason = refusal(AutoConfig.from_pretrained(file))
        except (AttributeError, StrictDataclassError, TypeError, ValueError):
            continue  # transformers' own config is not valid
        status = main(["inspect", file])
        out, err = capsys.readouterr()
        if reason is None:
            assert status == 0 and "not converted" not in out, model_type
            verdicts["supported"] += 1
        else:
            assert reason in (out if status == 0 else err), model_type
            verdicts["refused" if status else "shown"] += 1
    assert min(verdicts.values()) > 20, verdicts


def test_several_models_go_on_after_a_refused_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    types = ("llama", "bloom", "qwen3_5", "ctrl", "mistral")
    files = [written(tmp_path, model_type) for model_type in types]
    assert main(["inspect", *files]) == 2
    out, err = capsys.readouterr()
    table, _, reasons = out.strip().partition("\n\n")
    assert [row.split()[1] for row in table.splitlines()[2:]] == ["llama", "qwen3_5", "mistral"]
    assert reasons == f"qwen3_5: {why(files[2])}"
    assert err.splitlines() == [f"error: {files[i]}: {why(files[i])}" for i in (1, 3)]
    assert main(["inspect", files[0], files[2]]) == 0


def test_several_trials_go_on_after_a_refused_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    files = [written(tmp_path, "bloom"), written(tmp_path, "llama", **small)]
    assert main(["inspect", *files, "--try-row"]) == 2
    out, err = capsys.readouterr()
    assert "llama has a row already" in out
    assert err.startswith(f"error: {files[0]}: model_type='bloom' is not converted")
    assert main(["inspect", files[1], "--try-row"]) == 0


def test_the_text_model_of_a_whole_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    file = written(tmp_path, "emu3", text_config={**sizes, "num_hidden_layers": 2})
    assert main(["inspect", file, "--try-row"]) == 0
    out = capsys.readouterr().out
    assert '    Family(model_type="emu3_text_model")\n' in out
    assert "the text model of a emu3 model; where it lies in the whole, a row of" in out


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("bert", "it is built as BERT, an encoder, whose attention is not causal by itself"),
        ("led", "a led decoder reads an encoder's output, and rows are guessed of models that"),
        ("bart", "this type is supported already"),
        ("qwen2_5_vl", "images have positions of their own in three directions"),
    ],
)
def test_no_row_is_tried_where_none_would_do(
    model_type: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", written(tmp_path, model_type), "--try-row"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_values_that_no_config_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}')
    assert main(["inspect", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no config in {str(file)!r}: ")
    assert "30" in error and error.count("\n") == 1
