"""Pairs of an encoder's input and a decoder's text, as a calibration reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cacheshrink_hybrid import CompressionConfig, convert_to_mla, plan_of
from cacheshrink_hybrid.calibration.pairs import paired_sequences
from cacheshrink_hybrid.conversion.statistics import model_statistics
from cacheshrink_hybrid.errors import CalibrationError, ConfigError
from cacheshrink_hybrid.families import model_spec, read_cross_attention
from tests.families.encoder_configs import pairs, tiny_model
from tests.families.tiny_configs import tiny_model as tiny_decoder
from tests.tolerances import assert_same_computation

IDS = torch.tensor([[5, 6, 7]])


def test_labels_follow_the_first_token_of_a_decoder() -> None:
    model = tiny_model("bart")
    labels = torch.tensor([[9, 8, -100, 7]])
    (pair,) = paired_sequences(model, [{"input_ids": IDS, "labels": labels}])
    assert pair.ids.tolist() == [[1, 9, 8, 7]]
    assert set(pair.encoder) == {"input_ids"}


def test_what_a_decoder_reads_is_taken_as_it_is() -> None:
    (pair,) = paired_sequences(
        tiny_model("bart"), [{"input_ids": IDS.tolist(), "decoder_input_ids": [[1, 4]]}]
    )
    assert pair.ids.tolist() == [[1, 4]]
    assert torch.equal(pair.encoder["input_ids"], IDS)


def test_so_many_pairs_are_evenly_spread() -> None:
    model = tiny_model("whisper")
    found = paired_sequences(model, pairs(model, 6), 3)
    assert len(found) == 3
    whole = paired_sequences(model, pairs(model, 6))
    assert [torch.equal(a.ids, b.ids) for a, b in zip(found, list(whole)[::2], strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"is an empty list; give a list of dictionaries"),
        ("text", r"is a str; give a list of dictionaries"),
        ({"input_ids": IDS}, r"is a dict; give a list"),
        (["text"], r"\[0\] is a str; give a dictionary"),
        ([{"input_ids": IDS}], r"\[0\] has no text of the decoder; give labels"),
        (
            [{"input_ids": IDS, "labels": IDS, "decoder_input_ids": IDS}],
            r"\[0\] has labels and decoder_input_ids; give labels, .* or decoder_input_ids",
        ),
        ([{"labels": IDS}], r"\[0\] lacks input_ids; a BartForConditionalGeneration takes"),
        (
            [{"input_ids": IDS, "labels": IDS, "input_features": IDS}],
            r"\[0\] has input_features; a BartForConditionalGeneration takes input_ids",
        ),
        (
            [{"input_ids": IDS, "labels": IDS, "encoder_outputs": IDS}],
            r"\[0\] has encoder_outputs;",
        ),
        (
            [{"input_ids": IDS.expand(2, 3), "labels": IDS}],
            r"\[0\]\['input_ids'\] has shape \(2, 3\); give one row",
        ),
        (
            [{"input_ids": IDS, "labels": IDS.expand(2, 3)}],
            r"\[0\]\['labels'\] makes 2 x 3 tokens for the decoder; give one row",
        ),
        (
            [{"input_ids": IDS, "decoder_input_ids": IDS[:, :1]}],
            r"makes 1 x 1 tokens for the decoder; .* leaves something to predict",
        ),
        (
            [{"input_ids": IDS, "labels": torch.ones(1, 64)}],
            r"makes 1 x 65 tokens for the decoder; give one row, \(1, T\), of at most 64 tokens",
        ),
        (
            [{"input_ids": IDS, "labels": IDS, "attention_mask": torch.tensor([[1, 1, 0]])}],
            r"\[0\]\['attention_mask'\] hides some of what the encoder reads",
        ),
    ],
)
def test_what_is_no_pair_is_refused(given: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        paired_sequences(tiny_model("bart"), given)


def test_a_model_without_a_first_token_takes_decoder_input_ids() -> None:
    model = tiny_model("bart")
    model.config.decoder_start_token_id = None
    with pytest.raises(CalibrationError, match="says no decoder_start_token_id"):
        paired_sequences(model, [{"input_ids": IDS, "labels": IDS}])


@pytest.fixture
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as a CPU without instructions for bfloat16 computes them."""
    monkeypatch.setattr("cacheshrink_hybrid.precision.multiplies_bfloat16", lambda: False)


@pytest.mark.usefixtures("_exact_products")
@pytest.mark.parametrize("case", ["bart", "t5", "umt5", "whisper"])
@pytest.mark.parametrize("metric", ["fisher", "activation"])
def test_statistics_of_cross_attention_are_of_what_the_encoder_puts_out(
    case: str, metric: str
) -> None:
    model = tiny_model(case)
    given = paired_sequences(model, pairs(model, 4))
    found = model_statistics(model, CompressionConfig(metric=metric), given)
    assert found.cross is not None
    assert len(found.latents) == len(found.cross.latents) == 2
    with torch.no_grad():
        encoded = torch.cat(
            [model.get_encoder()(**pair.encoder).last_hidden_state[0] for pair in given]
        )
        parts = read_cross_attention(model, model_spec(model.config))
        for part, statistics in zip(parts, found.cross.latents, strict=True):
            assert statistics.num_tokens == len(encoded)
            due = part.key_value(encoded, 0).double()
            assert_same_computation(statistics.mean, due.mean(0))
            centred = due - due.mean(0)
            assert_same_computation(statistics.covariance, centred.T @ centred / len(due))


@pytest.mark.usefixtures("_exact_products")
def test_the_fisher_metric_is_of_gradients_of_cross_keys_and_values() -> None:
    model = tiny_model("bart")
    given = paired_sequences(model, pairs(model, 3))
    found = model_statistics(model, CompressionConfig(metric="fisher"), given).cross
    assert found is not None
    attention = model.model.decoder.layers[1].encoder_attn
    second, count = torch.zeros(64, 64, dtype=torch.float64), 0
    for pair in given:
        outputs: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(lambda *call, kept=outputs: kept.append(call[2]))
            for layer in (attention.k_proj, attention.v_proj)
        ]
        logits = model(**pair.encoder, decoder_input_ids=pair.ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, pair.ids[0, 1:], reduction="sum")
        gradients = torch.cat(torch.autograd.grad(loss, outputs), dim=-1)[0].double()
        for handle in handles:
            handle.remove()
        second += gradients.T @ gradients
        count += len(gradients)
    due = 0.5 * second / count
    assert_same_computation(found.latents[1].metric / due.abs().max(), due / due.abs().max())


@pytest.mark.parametrize("case", ["bart", "whisper"])
def test_a_conversion_is_measured_on_every_tenth_pair(case: str) -> None:
    source = tiny_model(case)
    model, _ = convert_to_mla(
        source, 4.0, calibration_inputs=pairs(source, 20), inplace=False, verbose=False
    )
    plan = plan_of(model)
    assert plan.certificate is not None and plan.cross is not None
    assert plan.certificate.num_sequences == 2
    assert plan.certificate.num_reading_coded == plan.certificate.num_tokens == 2 * 12
    assert plan.held_out_loss is not None and plan.cross.held_out_loss is not None
    assert plan.calibrated_on.startswith("pairs of the caller: 20 sequences, 260 tokens")
    table = plan.table(model_spec(model.config))
    assert "of what the encoder puts out:" in table


def test_calibration_loses_less_than_none() -> None:
    source = tiny_model("bart")
    losses = []
    for settings in (
        {"calibration_inputs": pairs(source, 14)[4:]},
        {"use_calibration": False},
    ):
        model, _ = convert_to_mla(
            source, 8.0, inplace=False, verbose=False, compression_method="joint", **settings
        )
        difference = 0.0
        with torch.no_grad():
            for pair in pairs(source, 4):
                due = source(**pair).logits.log_softmax(-1)
                found = model(**pair, use_cache=False).logits.log_softmax(-1)
                difference += float((due.exp() * (due - found)).sum())
        losses.append(difference)
    assert losses[0] < losses[1]


def test_text_alone_is_refused_for_a_model_with_an_encoder() -> None:
    message = r"text alone is no calibration for a bart model.*calibration_inputs="
    with pytest.raises(ConfigError, match=message):
        convert_to_mla(tiny_model("bart"), calibration_texts=["some text"], verbose=False)
    with pytest.raises(ConfigError, match=message):
        convert_to_mla(tiny_model("bart"), verbose=False)


def test_pairs_are_refused_for_a_model_that_reads_one_text() -> None:
    with pytest.raises(ConfigError, match=r"this llama model reads one text"):
        convert_to_mla(
            tiny_decoder("llama"), calibration_inputs=[{"input_ids": IDS, "labels": IDS}]
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibration_texts": ["text"]}, "calibration_texts and calibration_inputs both say"),
        ({"calibration_dataset": "python-docs"}, "calibration_dataset and calibration_inputs"),
        ({"use_calibration": False}, "calibration_inputs are not used with use_calibration=False"),
        ({"metric": "score"}, r"metric='score' weighs keys by queries of the same vectors"),
        ({"budget_bytes": 9999, "context_length": 64}, r"budget_bytes=9999 is the memory of one"),
    ],
)
def test_settings_that_do_not_go_with_pairs(settings: dict[str, Any], message: str) -> None:
    model = tiny_model("bart")
    with pytest.raises(ConfigError, match=message):
        convert_to_mla(model, calibration_inputs=pairs(model, 2), verbose=False, **settings)
