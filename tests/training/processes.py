"""A training that tests run in processes of their own: prints its losses as JSON.

python -m tests.training.processes OUTPUT [--resume] [--die-at STEP] [--batch-size N]
"""

from __future__ import annotations

import argparse
import json
import os
import signal

import torch

from cacheshrink_hybrid.training import MLATrainer
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids

NUM_SEQUENCES = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die-at", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--loss", default="lm")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = converted_copy(tiny_model("llama"), 4.0, store_original_weights=True)
    if given.die_at is not None:
        calls = 0

        def die(_module, _args) -> None:
            nonlocal calls
            calls += model.training and torch.is_grad_enabled()
            if calls > given.die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        model.register_forward_pre_hook(die)
    texts = [random_ids(1, 20 - i, seed=i)[0] for i in range(NUM_SEQUENCES)]
    stats = MLATrainer(
        model,
        None,
        loss=given.loss,
        max_steps=6,
        batch_size=given.batch_size,
        logging_steps=1,
        save_steps=2,
        output_dir=given.output,
    ).train(texts, resume_from_checkpoint=given.resume)
    if int(os.environ.get("RANK", "0")) == 0:
        losses = [record["loss"] for record in stats["losses"] if "loss" in record]
        final = {n: t.double().sum().item() for n, t in model.state_dict().items()}
        print("RESULT " + json.dumps({"losses": losses, "final": final, "stats": stats}))


if __name__ == "__main__":
    main()
