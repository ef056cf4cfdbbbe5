"""Frozen weights in pieces: in a group of one process, and in trainings of two."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

from cacheshrink_hybrid.checkpoint.load import load_mla_model
from cacheshrink_hybrid.checkpoint.save import save_mla_model
from cacheshrink_hybrid.training import frozen_shards
from cacheshrink_hybrid.training.attachment import Attachment
from cacheshrink_hybrid.training.data import collate
from cacheshrink_hybrid.training.objective import Objective
from cacheshrink_hybrid.training.settings import TrainingConfig
from cacheshrink_hybrid.training.targets import Original
from tests.models import calibration_ids, logits_of, random_ids, unchanged
from tests.training.sharding import TRAININGS, WAYS, trained
from tests.training.students import dataset, student

CPU = torch.device("cpu")


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def attached(model: PreTrainedModel, *, cut: bool, loss: str = "lm") -> Attachment:
    config = TrainingConfig(loss=loss).resolved(has_original=True)
    return Attachment(model, config, calibration_ids(2), shard_on=CPU if cut else None)


def recompute(model: PreTrainedModel) -> None:
    """Keep no activations of layers for the way back."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})


def loss_of(attachment: Attachment) -> Tensor:
    """Of a training pass, with the same dropout every time."""
    model, config = attachment.model, attachment.config
    batch = collate([{"input_ids": ids} for ids in dataset(2)])
    original = None if config.loss == "lm" else Original(model, None)
    objective = Objective(config, original, attachment.metrics_by_layer())
    torch.manual_seed(0)
    try:
        return objective(model.train(), batch["input_ids"], batch["labels"])
    finally:
        objective.close()


@pytest.mark.parametrize("loss", ["distillation", "local"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen3_moe", "falcon_h1", "zamba2-adapters"])
def test_passes_are_the_same(case: str, recomputes: bool, loss: str, one_process) -> None:
    """Losses and gradients bit for bit; also of a local loss, whose gradients pass through no
    layer's output, and where layers are computed again on the way back."""
    found = []
    for cut in (False, True):
        model = student(case, 2.0)
        if recomputes:
            recompute(model)
        with attached(model, cut=cut, loss=loss) as attachment:
            value = loss_of(attachment)
            value.backward()
            gradients = [item.parameter.grad for item in attachment.parameters]
            inside = logits_of(model.eval(), random_ids(1, 12))
        found.append([value.detach(), inside, logits_of(model, random_ids(1, 12)), *gradients])
    assert any(gradient is not None for gradient in gradients)
    for whole, cut in zip(*found, strict=True):
        assert (whole is None) == (cut is None)
        assert whole is None or torch.equal(whole, cut)


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_one_layer_is_whole_at_a_time(
    recomputes: bool, one_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way there and back, whatever autograd keeps."""
    rows: list[StorageWeakRef] = []
    most = 0
    gather = frozen_shards._all_gather

    def see(row: Tensor, own: Tensor) -> None:
        nonlocal most
        gather(row, own)
        rows.append(StorageWeakRef(row.untyped_storage()))
        most = max(most, sum(not row.expired() for row in rows))

    monkeypatch.setattr(frozen_shards, "_all_gather", see)
    model = student("llama")
    if recomputes:
        recompute(model)
    with attached(model, cut=True) as attachment:
        rows.clear()
        most = 0
        value = loss_of(attachment)
        layers = model.config.num_hidden_layers
        assert len(rows) == layers + 2  # embeddings, layers, head; the final norm trains
        value.backward()
        assert len(rows) == 2 * layers + 2
        assert most == 1


def test_frozen_weights_are_nan_between_passes(one_process) -> None:
    model = student("llama")
    with unchanged(model), attached(model, cut=True) as attachment:
        trains = {id(item.parameter) for item in attachment.parameters}
        logits_of(model, random_ids(1, 4))
        for name in ("model.embed_tokens", "model.layers.0.mlp.up_proj"):
            weight = model.get_submodule(name).weight
            assert weight.isnan().all()
            assert weight.untyped_storage().nbytes() == weight.element_size()
        assert all(p.isfinite().all() for p in model.parameters() if id(p) in trains)


def test_averaging_leaves_frozen_weights_out(one_process) -> None:
    """DDP sends all others to every process at its start."""
    with attached(student("llama"), cut=True) as attachment:
        logits_of(attachment.model, random_ids(1, 4))
        weight = attachment.model.model.embed_tokens.weight
        nn.parallel.DistributedDataParallel(attachment.model)
        assert weight.untyped_storage().nbytes() == weight.element_size()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_restored(dtype: torch.dtype, one_process) -> None:
    model = student("llama").to(dtype)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with unchanged(model), attached(model, cut=True) as attachment, autocast:
        assert torch.isfinite(loss_of(attachment))


def test_another_training_leaves_the_original_alone(one_process) -> None:
    """Extras of an earlier training have two values each, and are exchanged while frozen."""
    model = student("llama")
    with attached(model, cut=True), torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(2)
    expected = loss_of_local(copy.deepcopy(model), cut=False)
    assert torch.equal(loss_of_local(model, cut=True), expected)


def loss_of_local(model: PreTrainedModel, *, cut: bool) -> Tensor:
    with attached(model, cut=cut, loss="local") as attachment:
        return loss_of(attachment).detach()


def test_after_an_error_nobody_is_waited_for(one_process, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_module, _args) -> None:
        monkeypatch.setattr(frozen_shards, "_all_gather", None)
        raise KeyboardInterrupt

    model = student("llama")
    handle = model.model.layers[1].mlp.register_forward_pre_hook(interrupt)
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(KeyboardInterrupt), attached(model, cut=True):
        pass
    handle.remove()
    assert sum(hooks) - 1 == sum(len(module._forward_pre_hooks) for module in model.modules())
    for module in (model.lm_head, model.model.layers[1].mlp.up_proj):
        assert module.weight.isnan().all()


def frozen_bytes(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    same = [tensor for name, tensor in after.items() if torch.equal(tensor, before[name])]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in same}.values())


@pytest.mark.slow(group="two processes")
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes(name: str, two_processes: Path, tmp_path: Path) -> None:
    """Losses and weights are those of whole weights bit for bit, and of one process; also when
    resumed. Each process holds half of the frozen weights, and one layer."""
    found = {
        way: [torch.load(two_processes / f"{name}.{way}.{rank}.pt") for rank in (0, 1)]
        for way in WAYS[name]
    }
    training = TRAININGS[name]
    model = training.model()
    before = copy.deepcopy(model.state_dict())
    whole = found["whole"][0]
    for result in chain(*found.values()):
        assert losses(result) == losses(whole)
        assert result["weights"].keys() == before.keys()
        for key, weight in result["weights"].items():
            assert torch.equal(weight, whole["weights"][key]), key
    frozen = frozen_bytes(before, whole["weights"])
    layer = max(sum(p.nbytes for p in part.parameters()) for part in layers(model))
    for cut, other in zip(found["cut"], found["whole"], strict=True):
        assert other["grown_bytes"] - cut["grown_bytes"] > frozen / 2 - layer > 0

    if training.has_teacher:  # has dropout, of each process's own
        return
    one = trained(training, copy.deepcopy(model), tmp_path / "one", batch_size=4)
    model.load_state_dict(found["cut"][0]["weights"])
    save_mla_model(model, None, tmp_path / "model")
    loaded = load_mla_model(tmp_path / "model")[0]
    torch.testing.assert_close(
        logits_of(loaded, random_ids(1, 9)), logits_of(model, random_ids(1, 9))
    )
    assert losses(one) == pytest.approx(losses(whole), rel=1e-4)
    for key, weight in one["weights"].items():
        torch.testing.assert_close(weight, whole["weights"][key], rtol=1e-3, atol=1e-3)


def losses(result: dict[str, Any]) -> list[float]:
    return [record["loss"] for record in result["stats"]["losses"] if "loss" in record]


def layers(model: nn.Module) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))
