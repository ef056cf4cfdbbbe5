"""Saving touches nothing but the files of a save, and all of those or none."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from cacheshrink_hybrid import load_mla_model, save_mla_model
from cacheshrink_hybrid.checkpoint import files
from cacheshrink_hybrid.errors import CheckpointError
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, pair
from tests.texts import word_tokenizer

OURS = {
    "README.md",
    "cacheshrink_plan.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_cacheshrink_hybrid.py",
}
USERS = {
    "README.md": "my card",
    "tokenizer.json": "{}",
    "notes.txt": "mine",
    "pytorch_model.bin": "pickle",
    "training_args.bin": "arguments",
    "checkpoint-500/model.safetensors": "weights",
    "checkpoint-500/config.json": "{}",
    ".git/HEAD": "ref: refs/heads/main",
    "model-card.safetensors.txt": "near miss",
}


def converted(case: str = "llama") -> PreTrainedModel:
    return pair(case, "auto", ratio=4.0, metric="activation").converted


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def write_users_files(directory: Path) -> None:
    for name, text in USERS.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def assert_users_files_are_there(directory: Path) -> None:
    for name, text in USERS.items():
        assert (directory / name).read_text() == text, name


def test_what_a_save_writes(tmp_path: Path) -> None:
    converted().save_pretrained(tmp_path / "model")
    assert set(content(tmp_path)) == {f"model/{name}" for name in OURS}


@pytest.mark.parametrize("saved_before", [False, True])
@pytest.mark.parametrize("save", [PreTrainedModel.save_pretrained, save_mla_model])
def test_files_of_the_user_stay(save: Callable, saved_before: bool, tmp_path: Path) -> None:
    if saved_before:
        converted("qwen3").save_pretrained(tmp_path)
    write_users_files(tmp_path)
    if save is save_mla_model:
        save(converted(), None, tmp_path)
    else:
        converted().save_pretrained(tmp_path)
    assert_users_files_are_there(tmp_path)
    assert set(content(tmp_path)) == OURS | set(USERS)
    (tmp_path / "tokenizer.json").unlink()
    assert load_mla_model(tmp_path)[0].config.model_type == "llama"


def test_tokenizer_and_model_in_either_order(tmp_path: Path) -> None:
    for first, second in ((word_tokenizer(), converted()), (converted(), word_tokenizer())):
        first.save_pretrained(tmp_path / "model")
        second.save_pretrained(tmp_path / "model")
        assert load_mla_model(tmp_path / "model")[1] is not None


def test_a_save_of_another_size_leaves_no_stale_weights(tmp_path: Path) -> None:
    converted().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    converted("qwen3").save_pretrained(tmp_path)
    assert set(content(tmp_path)) == OURS
    converted().save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert load_mla_model(tmp_path)[0].config.model_type == "llama"


def test_files_beside_a_model_leave_its_weights_alone(tmp_path: Path) -> None:
    """Such as those of an adapter."""
    converted().save_pretrained(tmp_path, max_shard_size="20KB")
    before = content(tmp_path)
    with files.draft_of(tmp_path) as draft:
        (draft / "adapter_config.json").write_text("{}")
    assert content(tmp_path) == {**before, "adapter_config.json": b"{}"}


STRANGERS = ("config.json", "model.safetensors", "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", STRANGERS)
def test_another_model_is_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a stranger's")
    with pytest.raises(CheckpointError, match=rf"holds another model \({name}\), .*remove them"):
        converted().save_pretrained(tmp_path)
    assert content(tmp_path) == {name: b"a stranger's"}


def test_the_source_is_not_replaced_by_its_conversion(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds another model \(config.json, model.safe"):
        save_mla_model(converted(), word_tokenizer(), tmp_path)
    assert content(tmp_path) == before


def test_a_model_saved_over_a_converted_one_is_not_replaced(tmp_path: Path) -> None:
    """The converted model's plan still lies there."""
    save_mla_model(converted(), word_tokenizer(), tmp_path)
    tiny_model("llama").save_pretrained(tmp_path)
    before = content(tmp_path)
    assert "cacheshrink_plan.json" in before
    with pytest.raises(CheckpointError, match=r"holds another model \(config.json, model.safe"):
        converted().save_pretrained(tmp_path)
    assert content(tmp_path) == before


BESIDE = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "code.py")


@pytest.mark.parametrize("name", BESIDE)
def test_files_of_the_same_names_are_not_replaced(name: str, tmp_path: Path, monkeypatch) -> None:
    """Whatever a save writes, where no model of ours lies; another tokenizer's, for example."""
    monkeypatch.setattr("cacheshrink_hybrid.checkpoint.description.REMOTE_CODE_NAME", "code")
    (tmp_path / name).write_text("a stranger's")
    with pytest.raises(
        CheckpointError, match=rf"of something else \({name}\), .*remove them first"
    ):
        save_mla_model(converted(), word_tokenizer(), tmp_path)
    assert content(tmp_path) == {name: b"a stranger's"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_equal_files_are_no_obstacle(tmp_path: Path) -> None:
    word_tokenizer().save_pretrained(tmp_path)
    converted().generation_config.save_pretrained(tmp_path)
    save_mla_model(converted(), word_tokenizer(), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_mla_model(converted(), word_tokenizer(), tmp_path)  # a model of ours lies here now
    assert load_mla_model(tmp_path)[1] is not None


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "chapter.tex").write_text("text")
    with pytest.raises(CheckpointError, match=r"chapter.tex is a file; give a directory"):
        converted().save_pretrained(tmp_path / "chapter.tex")
    assert content(tmp_path) == {"chapter.tex": b"text"}


@pytest.mark.parametrize("target", [".", "new", "with space/and ünicode", "a/b/c/"])
def test_relative_targets(target: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    converted().save_pretrained(target)
    assert {path.name for path in Path(target).iterdir()} == OURS
    assert os.listdir(".")
    load_mla_model(target)


def test_home_and_links(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    converted().save_pretrained("~/model")
    load_mla_model("~/model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    converted("qwen3").save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_mla_model(tmp_path / "model")[0].config.model_type == "qwen3"


def test_files_behind_links_are_not_written_through(tmp_path: Path) -> None:
    """As in the cache of the Hub, whose files are links to what other revisions use too."""
    converted().save_pretrained(tmp_path / "blobs")
    blobs = content(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in blobs:
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    converted("qwen3").save_pretrained(tmp_path / "snapshot")
    assert content(tmp_path / "blobs") == blobs
    assert load_mla_model(tmp_path / "snapshot")[0].config.model_type == "qwen3"


def test_saving_over_the_files_that_the_model_was_loaded_from(tmp_path: Path) -> None:
    """Loaded weights lie in the memory map of their file."""
    converted().save_pretrained(tmp_path)
    model, _ = load_mla_model(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    again, _ = load_mla_model(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(model.state_dict()[name], before[name])


class DiskFull(OSError):
    def __init__(self, *_args, **_kwargs) -> None:
        super().__init__(errno.ENOSPC, "No space left on device")


def failing_after(function: Callable, calls: int) -> Callable:
    left = [calls]

    def fail_later(*args, **kwargs):
        if not left[0]:
            raise DiskFull
        left[0] -= 1
        return function(*args, **kwargs)

    return fail_later


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("calls", range(5))
def test_a_failure_between_files_puts_the_earlier_ones_back(
    calls: int, links: bool, tmp_path: Path, monkeypatch
) -> None:
    converted().save_pretrained(tmp_path, max_shard_size="20KB")
    write_users_files(tmp_path)
    before = content(tmp_path)
    replace = os.replace
    failing = failing_after(replace, calls)

    def replace_or_fail(source, target):  # the way back goes on working
        return replace(source, target) if "/old/" in str(source) else failing(source, target)

    monkeypatch.setattr(files.os, "replace", replace_or_fail)
    if not links:
        monkeypatch.setattr(files.os, "link", failing_after(os.link, 0))
    with pytest.raises(CheckpointError, match=r"No space left on device.*is unchanged"):
        converted("qwen3").save_pretrained(tmp_path)
    assert content(tmp_path) == before
    assert not list(tmp_path.glob(".cacheshrink*"))


@pytest.mark.parametrize("function", ["mkdtemp", "sha256_of"])
def test_a_failure_before_anything_was_moved(function: str, tmp_path: Path, monkeypatch) -> None:
    """A read-only directory, a full disk."""
    home = {"mkdtemp": "cacheshrink_hybrid.checkpoint.files.tempfile.mkdtemp"}
    place = home.get(function, f"cacheshrink_hybrid.checkpoint.description.{function}")
    monkeypatch.setattr(place, failing_after(len, 0))
    with pytest.raises(CheckpointError, match=r"No space left .*give another directory"):
        converted().save_pretrained(tmp_path / "deep" / "model")
    assert not list(tmp_path.iterdir())


def test_two_saves_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    models = [converted(), converted("qwen3")]
    for _ in range(3):
        threads = [
            threading.Thread(target=model.save_pretrained, args=(tmp_path,)) for model in models
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load_mla_model(tmp_path)
    assert not list(tmp_path.glob(".cacheshrink*"))


def test_trainer_saves_where_its_checkpoints_lie(tmp_path: Path) -> None:
    model = converted_copy(tiny_model("llama"), 4.0, "auto", metric="activation")
    tokenizer = word_tokenizer()
    arguments = TrainingArguments(
        tmp_path, max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": [3, 4, 5, 6]}] * 4,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_model()
    assert {"checkpoint-1", "checkpoint-2", "training_args.bin"} <= set(os.listdir(tmp_path))
    for place in (tmp_path, tmp_path / "checkpoint-2"):
        loaded, loaded_tokenizer = load_mla_model(place)
        assert loaded_tokenizer is not None
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])
