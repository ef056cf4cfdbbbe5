"""Sources by path, name, GGUF file and object; quantised weights are unpacked or refused."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from cacheshrink_hybrid import convert_to_mla, load_mla_model, plan_of, save_mla_model
from cacheshrink_hybrid.checkpoint.source_model import forget_quantisation, load_source
from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.errors import CacheShrinkError, ConfigError, UnsupportedModelError
from cacheshrink_hybrid.model.attached_plan import is_converted
from tests.families.tiny_configs import tiny_model
from tests.gguf_files import write_tiny_gguf
from tests.models import logits_of, random_ids, unchanged
from tests.texts import TEXTS, word_tokenizer
from tests.tolerances import assert_same_logits

PLAIN = {"use_calibration": False, "verbose": False}
EXACT = {**PLAIN, "cache_bits": 16}


@pytest.fixture(scope="module", params=["Q8_0", "F32"])
def gguf(request, tmp_path_factory) -> Path:
    """A GGUF file with quantised or plain weights."""
    pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path, quantised=request.param == "Q8_0")
    return path


GGUF_NAMES: dict[str, Callable[[Path], tuple]] = {
    "file": lambda path: (path, {}),
    "text": lambda path: (str(path), {}),
    "directory": lambda path: (path.parent, {"gguf_file": path.name}),
}


@pytest.mark.parametrize("way", GGUF_NAMES)
def test_gguf(way: str, gguf: Path, tmp_path: Path) -> None:
    """It converts as its unpacked weights do, is saved, and its tokenizer comes along."""
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    name, more = GGUF_NAMES[way](gguf)
    model, tokenizer = convert_to_mla(name, 1.0, **EXACT, **more)
    ids = random_ids(1, 20)
    assert_same_logits(logits_of(model, ids), logits_of(source, ids))
    save_mla_model(model, tokenizer, tmp_path)
    loaded, loaded_tokenizer = load_mla_model(tmp_path)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    assert not hasattr(loaded.config, "quantization_config")
    expected = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert loaded_tokenizer is not None
    assert loaded_tokenizer("the cat").input_ids == expected("the cat").input_ids


def test_gguf_with_calibration_and_dtype(gguf: Path) -> None:
    texts = [text * 4 for text in TEXTS]
    model, tokenizer = convert_to_mla(
        gguf, 4.0, calibration_texts=texts, dtype=torch.bfloat16, verbose=False
    )
    assert model.dtype == torch.bfloat16
    assert tokenizer is not None
    assert plan_of(model).compression_ratio >= 4.0


def test_gguf_object(gguf: Path, tmp_path: Path) -> None:
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model, _ = convert_to_mla(source, 4.0, **PLAIN)
    model.save_pretrained(tmp_path)
    load_mla_model(tmp_path)


def test_gguf_in_the_commands(gguf: Path, tmp_path: Path, capsys) -> None:
    assert main(["convert", str(gguf), str(tmp_path / "out"), "--metric", "none"]) == 0
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat " * 20)
    models = [str(gguf), str(tmp_path / "out")]
    assert main(["perplexity", *models, "--text", str(text), "--max-length", "64"]) == 0
    assert "tiny.gguf" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "states", "generate"])
def test_gguf_in_other_commands(command: str, gguf: Path, capsys, tmp_path: Path) -> None:
    """A directory with nothing but a GGUF file is the model in it."""
    more = {"generate": ["--prompt", "the cat", "--max-new-tokens", "3"]}.get(command, [])
    for name in (gguf, gguf.parent):
        status = main([command, str(name), *more])
        said = capsys.readouterr()
        if command == "states":  # what is wrong with it is that it has no states
            assert "need recurrent states" in said.err
        else:
            assert status == 0 and said.out


def test_directories_of_gguf_files(gguf: Path, tmp_path: Path) -> None:
    expected = load_source(gguf)[0].state_dict()
    shutil.copy(gguf, tmp_path / "a.gguf")
    model, tokenizer = load_source(tmp_path)
    assert tokenizer is not None
    assert all(torch.equal(expected[name], t) for name, t in model.state_dict().items())
    shutil.copy(gguf, tmp_path / "b.gguf")
    for load in (load_source, LLM):
        with pytest.raises(ConfigError, match=r"several GGUF files \(a.gguf, b.gguf\).*gguf_file="):
            load(tmp_path)
    load_source(tmp_path, gguf_file="b.gguf")


@pytest.mark.parametrize("kept", [0, 3, 10, 200, 2000, 16640, -10, -1])
def test_cut_gguf_files(kept: int, gguf: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(gguf.read_bytes()[:kept])
    for load in (load_source, LLM):
        with pytest.raises(ConfigError, match="cannot be loaded: ") as caught:
            load(file)
        assert "\n" not in str(caught.value)
        if kept > 4:
            assert "cut off or damaged" in str(caught.value)
    if 0 <= kept < 16640:  # its config is not whole
        assert main(["inspect", str(file)]) != 0
        said = capsys.readouterr().err
        assert ("cut off or damaged" if kept > 4 else "cannot be loaded") in said


def test_gguf_files_of_other_architectures(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    for architecture, said in (("wonder", "architecture wonder is not"), ("mamba", "lacks 1")):
        write_tiny_gguf(tmp_path / "tiny.gguf", architecture=architecture)
        for load in (load_source, LLM):
            with pytest.raises(ConfigError, match=said) as caught:
                load(tmp_path / "tiny.gguf")
            assert "\n" not in str(caught.value)


def test_weights_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    model = tiny_model("llama")
    weights = model.state_dict()
    del weights["model.layers.0.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    word_tokenizer().save_pretrained(tmp_path)
    for load in (load_source, LLM):
        with pytest.raises(ConfigError, match=r"lacks 1 weights .*up_proj.weight\), which would"):
            load(tmp_path)


METHODS = ("gptq", "awq", "bitsandbytes", "torchao", "hqq", "something_new")


def claim_quantised(model: PreTrainedModel, method: str) -> None:
    model.config.quantization_config = QuantizationConfigMixin(quant_method=method)


@pytest.mark.parametrize("method", METHODS)
def test_quantised_objects_are_refused(method: str) -> None:
    model = tiny_model("llama")
    claim_quantised(model, method)
    with unchanged(model), pytest.raises(UnsupportedModelError, match=rf"quantised \({method}\)"):
        convert_to_mla(
            model, 4.0, tokenizer=word_tokenizer(), calibration_texts=TEXTS, verbose=False
        )


@pytest.mark.parametrize("method", METHODS)
def test_quantised_directories_are_refused_before_their_weights_are_read(
    method: str, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    model.config.quantization_config = {"quant_method": method, "bits": 4}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=rf"\({method}\), .*it was made from"):
        convert_to_mla(tmp_path, 4.0, **PLAIN)


@pytest.mark.parametrize("method", ["mxfp4", "fp8", "gguf"])
def test_packed_weights_say_how_to_unpack_them(method: str) -> None:
    model = tiny_model("llama")
    claim_quantised(model, method)
    model.config.quantization_config.dequantize = False
    model.register_parameter("blocks", torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), False))
    with pytest.raises(UnsupportedModelError, match=r"quantization_config=\w+\(dequantize=True\)"):
        convert_to_mla(model, 4.0, **PLAIN)
    model.config.quantization_config.dequantize = True
    convert_to_mla(model, 4.0, **PLAIN)
    assert not hasattr(model.config, "quantization_config")


def test_forgetting_is_for_quantised_models_only() -> None:
    model = tiny_model("llama")
    with unchanged(model):
        forget_quantisation(model)


def test_other_arguments_of_loading(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "deep")
    word_tokenizer().save_pretrained(tmp_path / "deep")
    model, tokenizer = convert_to_mla(
        tmp_path,
        4.0,
        **PLAIN,
        subfolder="deep",
        attn_implementation="eager",
        device_map="cpu",
        revision="main",
        local_files_only=True,
    )
    assert model.config._attn_implementation == "eager"
    assert tokenizer is not None


def test_arguments_of_loading_are_for_names_and_paths() -> None:
    for given in ({"revision": "main"}, {"device": "cpu"}, {"dtype": torch.float32}):
        with pytest.raises(ConfigError, match=f"{next(iter(given))}: no argument for a model obj"):
            convert_to_mla(tiny_model("llama"), **PLAIN, **given)


def test_a_converted_directory_is_no_source(tmp_path: Path) -> None:
    convert_to_mla(tiny_model("llama"), 4.0, **PLAIN)[0].save_pretrained(tmp_path)
    with pytest.raises(CacheShrinkError, match="converted model already"):
        load_source(tmp_path)


@pytest.mark.parametrize("inplace", [True, False])
def test_inplace(inplace: bool) -> None:
    source = tiny_model("llama")
    expected = logits_of(copy.deepcopy(source), random_ids(1, 9))
    model, _ = convert_to_mla(source, 8.0, inplace=inplace, **PLAIN)
    assert (model is source) == inplace
    assert is_converted(source) == inplace
    if not inplace:
        assert torch.equal(logits_of(source, random_ids(1, 9)), expected)
        shared = {p.data_ptr() for p in model.parameters()} & {
            p.data_ptr() for p in source.parameters()
        }
        assert not shared
