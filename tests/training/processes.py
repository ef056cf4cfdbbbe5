"""Trainings that tests run in processes of their own.

    python -m tests.training.processes killed OUTPUT STEP     is killed in that step
    torchrun ... -m tests.training.processes shared OUTPUT    all those of two processes, in turn

The latter leaves in OUTPUT, for each loss of `LOSSES` and process RANK, `LOSS.RANK.pt`, the results
of `trained`, what `sharding` says, and in `finetune/` what that program makes of the model and the
`texts` that are written there beforehand.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cacheshrink_hybrid.checkpoint.save import save_mla_model
from cacheshrink_hybrid.training import MLATrainer
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids
from tests.texts import TEXTS, word_tokenizer
from tests.training import sharding

LOSSES = ("lm", "local", "distillation")
NUM_SEQUENCES = 10
MAX_STEPS = 6


def trained(
    output: Path,
    *,
    loss: str = "lm",
    batch_size: int = 4,
    resume: bool = False,
    die_at: int | None = None,
) -> dict[str, Any]:
    """Losses, statistics, and the sum of every weight, of a training on sequences of unequal
    lengths."""
    model = converted_copy(tiny_model("llama"), 4.0, store_original_weights=True)
    if die_at is not None:
        calls = 0

        def die(_module, _args) -> None:
            nonlocal calls
            calls += model.training and torch.is_grad_enabled()
            if calls > die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        model.register_forward_pre_hook(die)
    texts = [random_ids(1, 20 - i, seed=i)[0] for i in range(NUM_SEQUENCES)]
    stats = MLATrainer(
        model,
        None,
        loss=loss,
        max_steps=MAX_STEPS,
        batch_size=batch_size,
        logging_steps=1,
        save_steps=2,
        output_dir=output,
    ).train(texts, resume_from_checkpoint=resume)
    return {
        "losses": [record["loss"] for record in stats["losses"] if "loss" in record],
        "final": {name: t.double().sum().item() for name, t in model.state_dict().items()},
        "stats": stats,
    }


def prepare_finetuning(directory: Path) -> None:
    """A converted model in float16, and twenty texts."""
    model = converted_copy(tiny_model("llama"), 4.0).half()
    save_mla_model(model, word_tokenizer(), directory / "model")
    (directory / "texts").write_text("\n<|endoftext|>\n".join(TEXTS))


def finetune(directory: Path) -> None:
    """The program as `torchrun -m training.finetune` starts it."""
    paths = f"{directory}/model --data {directory}/texts --output {directory}/out"
    options = "--max-steps 2 --batch-size 2 --max-length 48 --shard-frozen-weights"
    sys.argv = ["finetune", *paths.split(), *options.split()]
    try:
        runpy.run_module("training.finetune", run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, ended.code


def main(way: str, output: Path, *rest: str) -> None:
    gc.freeze()  # as in tests/conftest.py
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if way == "killed":
        trained(output, die_at=int(rest[0]))
        return
    for loss in LOSSES:
        found = trained(output / loss, loss=loss, batch_size=2)
        torch.save(found, output / f"{loss}.{dist.get_rank()}.pt")
    for name in sharding.TRAININGS:
        sharding.train_whole_and_cut(name, output)
    finetune(output / "finetune")
    gc.unfreeze()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
