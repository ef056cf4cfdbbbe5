"""Settings of a conversion: one list of names and defaults, given by name or as one record."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid import convert_to_mla, plan_of
from cacheshrink_hybrid.checkpoint.source_model import SOURCE_ARGUMENTS
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.options import ConversionOptions
from cacheshrink_hybrid.errors import ConfigError
from tests.families.tiny_configs import tiny_model

PLAIN = {"use_calibration": False, "verbose": False}
CONFIG = CompressionConfig(compression_ratio=8.0, metric="none", cache_bits=16)


def test_settings_have_one_home() -> None:
    """No setting is a parameter as well, but for the three that go by position."""
    own = set(inspect.signature(convert_to_mla).parameters)
    settings = {field.name for field in fields(CompressionConfig)}
    options = {field.name for field in fields(ConversionOptions)}
    assert own & settings == {"compression_ratio", "compression_method", "d_latent"}
    assert not (own | settings) & options
    assert not (own | settings) & set(SOURCE_ARGUMENTS)


def test_help_names_the_records() -> None:
    words = inspect.getdoc(convert_to_mla)
    assert "help(CompressionConfig)" in words
    assert "ConversionOptions" in words


def test_settings_in_one_record() -> None:
    whole, _ = convert_to_mla(tiny_model("llama"), config=CONFIG, **PLAIN)
    named, _ = convert_to_mla(tiny_model("llama"), 8.0, cache_bits=16, **PLAIN)
    assert plan_of(whole) == plan_of(named)
    weights = named.state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_none_stands_for_a_default() -> None:
    given = dict.fromkeys(("compression_ratio", "compression_method", "d_latent", "metric"))
    model, _ = convert_to_mla(tiny_model("llama"), **given, **PLAIN)
    assert plan_of(model).settings == CompressionConfig(metric="none").to_dict()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"compresion_ratio": 4.0}, "no compresion_ratio; .*; is compression_ratio meant by comp"),
        ({"calibration_text": "x"}, "is calibration_texts meant by calibration_text"),
        ({"cache_bit": 8, "zq": 1}, "no cache_bit, zq; known are .*; is cache_bits meant by cach"),
        ({"config": CONFIG, "compression_ratio": 8.0}, "compression_ratio and config both give"),
        ({"config": CONFIG, "seed": 0, "metric": "none"}, "seed, metric and config both give set"),
        ({"config": CONFIG.to_dict()}, "config is a dict; give a CompressionConfig"),
        ({"config": CompressionConfig()}, "use_calibration=False and metric='fisher' contradict"),
        ({"compression_ratio": CONFIG}, "compression_ratio is a CompressionConfig, and settings"),
        ({"cache_bits": None}, "cache_bits=None is unknown; choose one of"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
@pytest.mark.parametrize("source", ["path", "object"])
def test_refused(given: dict, match: str, source: str, tmp_path: Path) -> None:
    model = tiny_model("llama") if source == "object" else tmp_path
    with pytest.raises(ConfigError, match=match):
        convert_to_mla(model, **given, **PLAIN)


def test_unknown_names_come_with_all_that_are_known() -> None:
    with pytest.raises(ConfigError) as caught:
        convert_to_mla(tiny_model("llama"), novelty=1, **PLAIN)
    known = re.split(", |; known are ", str(caught.value))
    for record in (CompressionConfig, ConversionOptions):
        assert {field.name for field in fields(record)} <= set(known)
    assert {"tokenizer", "calibration_texts", "revision"} <= set(known)
