"""Saved models come back bit for bit, and a damaged checkpoint says what is wrong with it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cacheshrink_hybrid import load_mla_model, plan_of, save_mla_model
from cacheshrink_hybrid.checkpoint.files import sha256_of
from cacheshrink_hybrid.checkpoint.savable_model import SavableModel
from cacheshrink_hybrid.errors import CheckpointError, ConfigError, UnsupportedModelError
from cacheshrink_hybrid.families import FAMILIES
from tests.families.tiny_configs import CASES, tiny_model
from tests.models import (
    Pair,
    converted_copy,
    logits_in_pieces,
    logits_of,
    pair,
    prefill_then_decode,
    random_ids,
)
from tests.subprocesses import run_python
from tests.texts import TEXTS, word_tokenizer

XKV_CASES = ("llama", "gpt2", "gemma2", "qwen3", "zamba2", "olmo_hybrid")
ROUND_TRIPS = [(case, "auto") for case in CASES] + [(case, "xkv") for case in XKV_CASES]
WEIGHTS = "model.safetensors"


def compressed(case: str = "llama", method: str = "auto") -> Pair:
    return pair(case, method, ratio=4.0, metric="activation")


def weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def stored_names(directory: Path) -> set[str]:
    names: set[str] = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def assert_bit_equal(loaded: PreTrainedModel, saved: PreTrainedModel) -> None:
    assert not loaded.training
    assert type(loaded) is type(saved)
    assert plan_of(loaded) == plan_of(saved)
    frozen = {name: parameter.requires_grad for name, parameter in saved.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == frozen
    expected = saved.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # Loaded tensors lie in the file's memory map, where kernels may sum in another order; a copy
    # is aligned as the saved model is.
    aligned = copy.deepcopy(loaded)
    ids = random_ids(2, 22)
    assert torch.equal(logits_of(aligned, ids), logits_of(saved, ids))
    pieces = prefill_then_decode(22, 14)
    assert torch.equal(logits_in_pieces(aligned, ids, pieces), logits_in_pieces(saved, ids, pieces))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a small Llama that a test may damage."""
    directory = tmp_path / "model"
    save_mla_model(compressed().converted, word_tokenizer(), directory)
    return directory


@pytest.mark.parametrize(("case", "method"), ROUND_TRIPS)
def test_round_trip(case: str, method: str, tmp_path: Path) -> None:
    source, converted = compressed(case, method).both()
    source.save_pretrained(tmp_path / "source")
    save_mla_model(converted, None, tmp_path / "first")
    loaded, tokenizer = load_mla_model(tmp_path / "first")
    assert tokenizer is None
    assert_bit_equal(loaded, converted)
    assert_bit_equal(AutoModelForCausalLM.from_pretrained(tmp_path / "first"), converted)
    loaded.save_pretrained(tmp_path / "second")
    for name in sorted(path.name for path in (tmp_path / "first").iterdir()):
        first, second = (tmp_path / which / name for which in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name
    family = FAMILIES[source.config.model_type]
    # Where norms come before the cache, projections stay, and what codes them stands beside.
    grown = 1.1 if family.caches_latents or family.value_norm else 1.0
    assert weight_bytes(tmp_path / "first") <= grown * weight_bytes(tmp_path / "source")


@pytest.mark.parametrize(
    ("case", "method"), [("llama", "xkv"), ("gpt2", "auto"), ("zamba2", "xkv")]
)
def test_shared_tensors_are_stored_once_and_stay_shared(
    case: str, method: str, tmp_path: Path
) -> None:
    converted = compressed(case, method).converted
    save_mla_model(converted, None, tmp_path / "model")
    state = load_file(tmp_path / "model" / WEIGHTS)
    assert sum(t.numel() for t in state.values()) == sum(
        t.numel() for t in [*converted.parameters(), *persistent_buffers(converted)]
    )
    loaded, _ = load_mla_model(tmp_path / "model")
    assert num_parameters(loaded) == num_parameters(converted)


def num_parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def persistent_buffers(model: PreTrainedModel) -> list[torch.Tensor]:
    parameters = {id(p) for p in model.parameters()}
    unique = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    return [t for key, t in unique.items() if key not in parameters]


def test_basis_group_is_one_parameter_after_loading(tmp_path: Path) -> None:
    save_mla_model(compressed("llama", "xkv").converted, None, tmp_path / "model")
    names = [n for n in stored_names(tmp_path / "model") if n.endswith("k_b_proj.weight")]
    assert names == ["model.layers.0.self_attn.k_b_proj.weight"]
    loaded, _ = load_mla_model(tmp_path / "model")
    weights = {id(layer.self_attn.k_b_proj.weight) for layer in loaded.model.layers}
    assert len(weights) == 1


def test_original_weights_are_not_saved(tmp_path: Path) -> None:
    """`store_original_weights` is for a live model; a checkpoint holds the compressed one."""
    converted = converted_copy(
        compressed().source, 4.0, "joint", metric="activation", store_original_weights=True
    )
    save_mla_model(converted, None, tmp_path / "model")
    assert not any("source_attention" in name for name in stored_names(tmp_path / "model"))
    loaded, _ = load_mla_model(tmp_path / "model")
    ids = random_ids(2, 22)
    assert torch.equal(logits_of(copy.deepcopy(loaded), ids), logits_of(converted, ids))


def test_tokenizer_and_generation_config_travel_along(saved: Path) -> None:
    model, tokenizer = load_mla_model(saved)
    assert tokenizer is not None
    assert tokenizer(TEXTS[0]).input_ids == word_tokenizer()(TEXTS[0]).input_ids
    assert AutoTokenizer.from_pretrained(saved)(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids
    expected = compressed().converted.generation_config
    assert model.generation_config.eos_token_id == expected.eos_token_id


def test_sharded(tmp_path: Path) -> None:
    converted = compressed().converted
    save_mla_model(converted, None, tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    loaded, _ = load_mla_model(tmp_path / "model")
    assert_bit_equal(loaded, converted)


def test_missing_shard(tmp_path: Path) -> None:
    save_mla_model(compressed().converted, None, tmp_path / "model", max_shard_size="20KB")
    shard = sorted((tmp_path / "model").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name} cannot be read .*copy .* again"):
        load_mla_model(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_device(saved: Path, dtype: torch.dtype) -> None:
    model, _ = load_mla_model(saved, device="cpu", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.device.type == "cpu"
    assert logits_of(model, random_ids(1, 9)).dtype == dtype


def test_meta_device_is_passed_on(saved: Path) -> None:
    model, _ = load_mla_model(saved, device="meta")
    assert model.device.type == "meta"


def test_bfloat16_checkpoint_loads_as_bfloat16(tmp_path: Path) -> None:
    source = tiny_model("llama", dtype=torch.bfloat16)
    converted = converted_copy(source, 4.0, "auto", metric="activation")
    save_mla_model(converted, None, tmp_path / "model")
    loaded, _ = load_mla_model(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    assert_bit_equal(loaded, converted)


@pytest.mark.slow
def test_another_process_loads_it_with_remote_code(saved: Path, tmp_path: Path) -> None:
    """Without importing the package first, from another directory, offline."""
    program = (
        "import copy, sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "assert 'cacheshrink_hybrid' not in sys.modules\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = torch.arange(3, 25)[None]\n"
        "torch.save(copy.deepcopy(model)(ids).logits, sys.argv[2])\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = program, saved, elsewhere / "logits.pt"
    done = run_python("-c", *arguments, cwd=elsewhere, HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 0, done.stderr
    ids = torch.arange(3, 25)[None]
    expected = logits_of(compressed().converted, ids)
    assert torch.equal(torch.load(elsewhere / "logits.pt"), expected)


def edit_json(name: str, **values) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        state = load_file(directory / WEIGHTS)
        change(state)
        save_file(state, directory / WEIGHTS, metadata={"format": "pt"})
        edit_json("config.json", weights_sha256=sha256_of(directory, [WEIGHTS]))(directory)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def flip_a_bit(directory: Path) -> None:
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-5] ^= 0x40
    (directory / WEIGHTS).write_bytes(content)


def truncate(directory: Path) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def pickle_instead(directory: Path) -> None:
    torch.save(load_file(directory / WEIGHTS), directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()


LATENT = "model.layers.1.self_attn.kv_a_proj.weight"
DAMAGES = {
    "missing-tensor": (
        edit_weights(lambda state: state.pop(LATENT)),
        r"do not fit its plan: 1 missing keys \(.*kv_a_proj.weight\); .*save it again",
    ),
    "missing-source-tensor": (
        edit_weights(lambda state: state.pop("model.norm.weight")),
        r"do not fit its plan: 1 missing keys \(.*model.norm.weight\); .*save it again",
    ),
    "extra-tensor": (
        edit_weights(lambda state: state.update(other=torch.zeros(2))),
        r"1 unexpected keys \(.*other\)",
    ),
    "wrong-shape": (
        edit_weights(lambda state: state.update({LATENT: torch.zeros(3, 5)})),
        r"do not fit its plan: .*kv_a_proj.weight(.|\n)*save it again",
    ),
    "truncated": (truncate, r"model.safetensors cannot be read .*copy the checkpoint again"),
    "pickle": (pickle_instead, r"pickled weights \(pytorch_model.bin\), which are not read"),
    "no-weights": (remove(WEIGHTS), r"has no model.safetensors; it is incomplete"),
    "no-plan": (
        remove("cacheshrink_plan.json"),
        r"no checkpoint of a converted model: its cacheshrink_plan.json is missing; convert_to_mla",
    ),
    "flipped-bit": (
        flip_a_bit,
        r"model.safetensors in .* changed since the model was saved .*verify_weights=False",
    ),
    "other-weights-beside-it": (
        lambda directory: shutil.copy(
            directory / WEIGHTS, directory / "model-00001-of-00002.safetensors"
        ),
        r"weights that are not of this checkpoint \(model-00001-of-00002.safetensors\)",
    ),
    "plan-is-no-json": (
        lambda directory: (directory / "cacheshrink_plan.json").write_text("{"),
        r"no checkpoint of a converted model: its cacheshrink_plan.json is no JSON: Expecting",
    ),
    "older-version": (
        edit_json("config.json", format_version=7),
        r"format version 7; this package reads 8",
    ),
    "newer-version": (
        edit_json("config.json", format_version=99),
        r"format version 99; this package reads 8",
    ),
    "newer-version-with-new-plan-fields": (
        lambda directory: (
            edit_json("config.json", format_version=99)(directory),
            edit_json("cacheshrink_plan.json", novelty=1)(directory),
        ),
        r"format version 99; this package reads 8",
    ),
    "other-layout": (
        edit_json("config.json", cache_layout="0" * 64),
        r"cache layout 0{16}, and its cacheshrink_plan.json .* now give [0-9a-f]{16}: .*restore",
    ),
    "no-layout": (
        lambda directory: (directory / "config.json").write_text(
            json.dumps(
                {
                    name: value
                    for name, value in json.loads((directory / "config.json").read_text()).items()
                    if name != "cache_layout"
                }
            )
        ),
        r"no checkpoint of a converted model: its config.json or .* lacks cache_layout; convert",
    ),
    "other-window": (
        edit_json("config.json", source_model_type="mistral"),
        r"cache layout [0-9a-f]{16}, and .*was edited",
    ),
    "unknown-source": (
        edit_json("config.json", source_model_type="unheard_of"),
        r"source_model_type='unheard_of', which is no model type",
    ),
}


@pytest.mark.parametrize("load", [load_mla_model, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize("name", DAMAGES)
def test_damage(name: str, load: Callable, saved: Path) -> None:
    damage, message = DAMAGES[name]
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_changed_weights_load_when_asked_to(saved: Path) -> None:
    flip_a_bit(saved)
    model, _ = load_mla_model(saved, verify_weights=False)
    model.save_pretrained(saved)
    load_mla_model(saved)


def test_directories_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no directory; give one that save_mla_model"):
        load_mla_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint .*convert_to_mla makes one"):
        load_mla_model(tmp_path)
    compressed().source.save_pretrained(tmp_path / "source")
    for load in (load_mla_model, SavableModel.from_pretrained):
        with pytest.raises(
            CheckpointError, match=r"no checkpoint .*convert_to_mla makes"
        ) as caught:
            load(tmp_path / "source")
        assert "its config.json is of a source model, model_type 'llama';" in str(caught.value)
        assert "Error" not in str(caught.value)


def test_source_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is not converted; run convert_to_mla"):
        save_mla_model(tiny_model("llama"), None, tmp_path / "model")
    assert not list(tmp_path.iterdir())


class BrokenTokenizer:
    def save_pretrained(self, directory: Path) -> None:
        (directory / "half").write_text("a")
        raise OSError("disk full")


def test_failing_save_leaves_the_old_checkpoint(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(CheckpointError, match=r"could not be saved .*disk full.* is unchanged"):
        save_mla_model(compressed("qwen3").converted, BrokenTokenizer(), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_failing_first_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not be saved .*disk full.* is unchanged"):
        save_mla_model(compressed().converted, BrokenTokenizer(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_relative_path_and_trailing_slash(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_mla_model(compressed().converted, None, "out/model/")
    assert_bit_equal(load_mla_model("out/model/")[0], compressed().converted)


def test_current_directory(tmp_path: Path, monkeypatch) -> None:
    """Saving over the checkpoint in the current directory by the name '.'."""
    save_mla_model(compressed().converted, None, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    save_mla_model(compressed("qwen3").converted, None, ".")
    loaded, _ = load_mla_model(tmp_path / "model")
    assert loaded.config.model_type == "qwen3"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_moved_checkpoint_loads(saved: Path, tmp_path: Path) -> None:
    shutil.move(saved, tmp_path / "moved")
    assert_bit_equal(load_mla_model(tmp_path / "moved")[0], compressed().converted)


def with_source_inside() -> PreTrainedModel:
    return converted_copy(
        compressed().source, 4.0, "auto", metric="activation", store_original_weights=True
    )


@pytest.mark.parametrize("make", [lambda: compressed("llama", "xkv").converted, with_source_inside])
@pytest.mark.parametrize("cloned", [True, False])
def test_the_documented_way_to_save_from_several_processes(
    cloned: bool, make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    """With what accelerate's recipe gives; a gathered state dict shares no memory."""
    model = make()
    state = {n: t.clone() if cloned else t for n, t in model.state_dict().items()}
    for process in (1, 0):
        model.save_pretrained(
            tmp_path / "model",
            is_main_process=process == 0,
            save_function=torch.save,
            state_dict=state,
        )
        assert (tmp_path / "model").exists() == (process == 0)
    model.save_pretrained(tmp_path / "plain")
    for name in ("model.safetensors", "config.json"):
        saved, plain = (tmp_path / place / name for place in ("model", "plain"))
        assert saved.read_bytes() == plain.read_bytes()


def test_another_state_dict_is_what_is_saved(tmp_path: Path) -> None:
    model = compressed().converted
    doubled = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, True, doubled)
    for name, tensor in load_mla_model(tmp_path)[0].state_dict().items():
        assert torch.equal(tensor, doubled[name])


STATES: dict[str, Callable[[dict], dict]] = {
    "prefixed": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "a part": lambda state: dict(list(state.items())[3:]),
    "more": lambda state: {**state, "other": torch.zeros(1)},
}


@pytest.mark.parametrize("way", STATES)
def test_a_state_dict_of_something_else(way: str, tmp_path: Path) -> None:
    model = compressed().converted
    with pytest.raises(CheckpointError, match=r"state_dict lacks weights .*of the whole model"):
        model.save_pretrained(tmp_path / "model", state_dict=STATES[way](model.state_dict()))
    assert not list(tmp_path.iterdir())


REFUSED_WHEN_SAVING = {
    "variant": ("fp16", "in the precision it has"),
    "safe_serialization": (False, "pickled weights are not written"),
    "distributed_checkpoint": (True, "parts are not saved"),
    "max_shard_sise": ("1GB", "takes no max_shard_sise"),
}


@pytest.mark.parametrize("name", REFUSED_WHEN_SAVING)
def test_arguments_that_a_save_refuses(name: str, tmp_path: Path) -> None:
    value, words = REFUSED_WHEN_SAVING[name]
    with pytest.raises(ConfigError, match=words):
        compressed().converted.save_pretrained(tmp_path / "model", **{name: value})
    assert not list(tmp_path.iterdir())


def test_arguments_that_ask_for_what_is_done(tmp_path: Path) -> None:
    compressed().converted.save_pretrained(
        tmp_path, variant=None, safe_serialization=True, push_to_hub=False, token=None
    )
    assert_bit_equal(load_mla_model(tmp_path)[0], compressed().converted)


def test_offloaded_weights_are_saved(tmp_path: Path) -> None:
    """Those on disk are on the meta device, where all addresses are zero."""
    save_mla_model(compressed().converted, None, tmp_path / "model")
    layers = {f"model.layers.{i}": "disk" for i in range(1, 3)}
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        offload_folder=tmp_path / "offload",
        device_map={**dict.fromkeys(rest, "cpu"), **layers},
    )
    model.save_pretrained(tmp_path / "again")
    assert_bit_equal(load_mla_model(tmp_path / "again")[0], compressed().converted)
