"""transformers.Trainer, taught the loss, the evaluation and the checkpoints of latent models."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geoopt
import torch
from torch import Tensor, nn
from transformers import Trainer

from ..errors import TrainingError
from .attachment import BASES, Attachment
from .data import EpochSampler
from .objective import Objective
from .output import COMPLETE_NAME, load_trained, save_trained


class LatentTrainer(Trainer):
    """The loop of transformers over an `Objective`.

    Args:
        attachment: the model and what trains in it.
        objective: loss of a batch, summed over tokens.
        measure: (summed negative log-likelihood, tokens) of this process's share of the evaluation
            texts, or on every process of all of them; None for no evaluation.
        on_step: called before the loss of each step with its number.
        on_evaluation: called after each evaluation with its perplexity and the steps so far.
    """

    control: Any  # the base class leaves its type open

    def __init__(
        self,
        *args,
        attachment: Attachment,
        objective: Objective,
        measure: Callable[[], tuple[float, int]] | None,
        on_step: Callable[[int], None] = lambda step: None,
        on_evaluation: Callable[[float, int], None] = lambda perplexity, step: None,
        **kwargs,
    ) -> None:
        super().__init__(*args, model=attachment.model, **kwargs)
        self.attachment = attachment
        self.objective = objective
        self.measure = measure
        self.on_step = on_step
        self.on_evaluation = on_evaluation
        self.num_tokens = 0
        # compute_loss divides by the tokens of the whole step, so accumulation needs no more.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.trained_names = [item.name for item in attachment.parameters] + [
            f"{BASES}.{name}" for name, _ in attachment.bases.named_buffers()
        ]

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        return EpochSampler(
            len(self.train_dataset) - 1,  # the last one is empty
            self.args.train_batch_size * self.args.world_size,
            seed=self.args.seed,
            epoch=lambda: int((self.state.epoch or 0) + 1e-9),
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        assert not return_outputs and num_items_in_batch is not None
        self.on_step(self.state.global_step)
        loss = self.objective(model, inputs["input_ids"], inputs["labels"]) / num_items_in_batch
        self.num_tokens += int(inputs["labels"].ne(-100).sum())
        # Gradients are averaged over processes, and the tokens are those of all of them.
        return loss * self.accelerator.num_processes

    def training_step(self, model: nn.Module, inputs, num_items_in_batch=None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_finite(loss)
        return loss

    def _check_finite(self, loss: Tensor) -> None:
        """Raise before a step is taken with a loss or gradients that are not finite."""
        parameters = self.attachment.parameters
        given = [p.parameter.grad for p in parameters if p.parameter.grad is not None]
        if torch.isfinite(nn.utils.get_total_norm(given)):
            return
        bad = [
            item.name
            for item in parameters
            if item.parameter.grad is not None and not torch.isfinite(item.parameter.grad).all()
        ]
        if not bad:  # finite, if too large for the sum of their squares
            return
        shown = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise TrainingError(
            f"the gradients of {shown} are not finite at step {self.state.global_step + 1} (loss "
            f"{float(loss):.4g}); no step was taken with them. Checkpoints before it are good: "
            "resume from the last one with a lower learning_rate_scale, or in bfloat16 or float32"
        )

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Perplexity through the cache that generation uses."""
        assert self.measure is not None
        training = self.model.training
        start = time.perf_counter()
        self.model.eval()
        totals = torch.tensor(self.measure(), dtype=torch.float64, device=self.args.device)
        self.model.train(training)
        total, count = self.accelerator.reduce(totals, reduction="sum").tolist()
        loss = total / count
        metrics = {
            "eval_loss": loss,
            "eval_perplexity": float(torch.tensor(loss, dtype=torch.float64).exp()),
            "eval_seconds": time.perf_counter() - start,
        }
        self.on_evaluation(metrics["eval_perplexity"], self.state.global_step)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """With the learning rates under names that say what they are of."""
        if logs.pop("learning_rate", None) is not None and self.optimizer is not None:
            for group in self.optimizer.param_groups:
                on_manifold = isinstance(group["params"][0], geoopt.ManifoldParameter)
                name = "lr_bases" if on_manifold else "lr_others"
                logs[name] = max(logs.get(name, 0.0), float(group["lr"]))
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        save_trained(self.attachment.model, self.trained_names, directory)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            path = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            (path / COMPLETE_NAME).touch()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        load_trained(self.attachment.model, self.trained_names, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def close(self) -> None:
        """Leave the model as it was before the loop took it over."""
        self.objective.close()
        self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def floating_point_ops(self, inputs) -> int:
        return 0
