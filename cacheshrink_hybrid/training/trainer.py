"""`MLATrainer`: fine-tuning of a converted model, from texts to statistics, on one page."""

from __future__ import annotations

import math
import random
import resource
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.integrations import is_tensorboard_available

from ..errors import ConfigError
from ..evaluation.perplexity import score_sequences
from ..families.encoder_decoder import ONE_TEXT, refuse_encoder
from ..model.adapters import refuse_adapters
from ..model.attached_plan import attach_certificate, plan_of, refuse_head_groups
from ..model.original_model import has_original_weights
from .arguments import autocast, check_launcher, computes_in_bf16, training_arguments
from .attachment import Attachment
from .best_weights import BestWeights
from .data import EMPTY, collate, training_sequences
from .frozen_shards import FrozenShards
from .loop import LatentTrainer
from .objective import Objective
from .optimizer import make_optimizer
from .output import check_writable, last_checkpoint, needed_bytes
from .settings import TrainingConfig
from .targets import Original, check_teacher

MEASURED_SEQUENCES = 32
"""Training sequences that perplexity is measured on where no evaluation texts are given."""


class MLATrainer:
    """Fine-tunes what compression introduced: bases on the Stiefel manifold, encoders, biases.

    Args:
        model: a converted model; it is trained in place.
        tokenizer: not needed for data sets of token ids.
        euclidean_lr, riemannian_lr, reconstruction_alpha: see `TrainingConfig`.
        use_distillation, use_reconstruction_loss: `loss="distillation"` or `"reconstruction"`.
        teacher_model: the original model. Without it the converted model teaches itself with
            compression switched off, which needs `store_original_weights=True`.
        output_dir: for checkpoints; needed with `save_steps` and `early_stopping_patience`.
        config: all settings in one, instead of by name.
        **settings: the other fields of `TrainingConfig`.

    Raises:
        ConfigError: bad or unknown settings, all listed; both losses at once; a teacher with
            another vocabulary.
        UnsupportedModelError: a model that is not converted, or carries adapters of peft; no
            original to compare with.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        euclidean_lr: float | None = None,
        riemannian_lr: float | None = None,
        use_distillation: bool = False,
        use_reconstruction_loss: bool = False,
        reconstruction_alpha: float = 0.3,
        teacher_model: PreTrainedModel | None = None,
        output_dir: str | Path | None = None,
        *,
        config: TrainingConfig | None = None,
        **settings: Any,
    ) -> None:
        if use_distillation and use_reconstruction_loss:
            raise ConfigError(
                "use_distillation and use_reconstruction_loss are two losses; choose one"
            )
        if use_distillation or use_reconstruction_loss:
            if "loss" in settings:
                raise ConfigError(
                    f"loss={settings['loss']!r} and use_distillation or use_reconstruction_loss "
                    "both choose the loss; give one of them"
                )
            settings["loss"] = "distillation" if use_distillation else "reconstruction"
        chosen = TrainingConfig.merged(
            config,
            {
                "euclidean_lr": euclidean_lr,
                "riemannian_lr": riemannian_lr,
                "reconstruction_alpha": reconstruction_alpha,
                **settings,
            },
        )
        self.model = model
        self.tokenizer = tokenizer
        self.teacher = teacher_model
        self.output_dir = None if output_dir is None else Path(output_dir)
        refuse_adapters(model, "MLATrainer")
        plan = plan_of(model)
        refuse_head_groups(model, "MLATrainer")
        refuse_encoder(model.config, "MLATrainer", ONE_TEXT)
        self.config = chosen.resolved(
            has_original=teacher_model is not None or has_original_weights(model)
        )
        self._check(plan.latents)
        # Raises now if there is no original to learn from.
        if self.config.loss != "lm":
            Original(model, teacher_model)

    def _check(self, latents) -> None:
        config = self.config
        if self.teacher is not None:
            if config.loss in ("lm", "local"):
                raise ConfigError(
                    f"teacher_model is not used by loss={config.loss!r}; leave it out, or take "
                    "'distillation' or 'reconstruction'"
                )
            check_teacher(self.model, self.teacher)
        if self.output_dir is None and (config.save_steps or config.early_stopping_patience):
            raise ConfigError("save_steps and early_stopping_patience need output_dir")
        if config.report_to != "none" and self.output_dir is None:
            raise ConfigError(f"report_to={config.report_to!r} needs output_dir")
        if config.report_to == "tensorboard" and not is_tensorboard_available():
            raise ConfigError(
                "report_to='tensorboard' needs the package tensorboard, which is not installed: "
                "pip install 'cacheshrink_hybrid[train]'"
            )
        if config.loss in ("local", "reconstruction") and not latents:
            raise ConfigError(
                f"loss={config.loss!r} is about attention, but only recurrent states of this model "
                "are compressed; take 'lm' or 'distillation'"
            )
        if config.loss == "reconstruction" and any(plan.kind.decouples for plan in latents):
            raise ConfigError(
                "loss='reconstruction' compares keys, of which decoupled ones keep what scores "
                "need and not the sum; take 'distillation', 'local' or 'lm'"
            )

    def train(
        self,
        dataset: Iterable,
        num_epochs: float | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        *,
        eval_dataset: Iterable | None = None,
        resume_from_checkpoint: bool | str | Path = False,
    ) -> dict[str, Any]:
        """Train on a data set and leave the model in evaluation mode.

        Args:
            dataset: texts, records with `text` or `input_ids`, or token ids.
            num_epochs, batch_size, max_length: in place of those of the settings.
            eval_dataset: as `dataset`, for perplexities; without it they are measured on the first
                32 training sequences.
            resume_from_checkpoint: a directory written by `save_steps`, or True for the last
                complete one in `output_dir`.

        Returns:
            `train_loss` (mean over all steps), `losses` (one record per log line),
            `perplexity_before` and `perplexity_after` and `perplexity_of` (`evaluation` or
            `training` texts), `perplexity_last` (after the last step) and `kept_step` (steps that
            led to the weights that are kept, see `keep_best`), `orthonormality_error`
            (max |U^T M U - I| with scales divided out; None without the constraint), `steps`,
            `tokens` (predicted, on this process), `seconds`, `tokens_per_second`,
            `peak_memory_bytes`, `trainable_parameters`.

        Raises:
            CalibrationError: no usable text.
            TrainingError: unwritable output, or a loss or gradient that is not finite. The model
                then holds the weights of the last good step, but those that
                `shard_frozen_weights` cut are lost.
            CheckpointError: a checkpoint that does not fit.
        """
        given = {"num_epochs": num_epochs, "batch_size": batch_size, "max_length": max_length}
        changed = {name: value for name, value in given.items() if value is not None}
        config = TrainingConfig.from_dict({**self.config.to_dict(), **changed})
        sequences = training_sequences(self.tokenizer, dataset, config.max_length)
        measured = sequences[:MEASURED_SEQUENCES]
        if eval_dataset is not None:
            measured = training_sequences(self.tokenizer, eval_dataset, config.max_length)
        self._check_tokens(sequences + measured)
        checkpoint = self._checkpoint(resume_from_checkpoint)
        check_launcher(config)
        with ExitStack() as stack:
            directory = self.output_dir
            if directory is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            arguments = training_arguments(config, directory, computes_in_bf16(config, self.model))
            device = arguments.device
            if config.shard_frozen_weights:
                if self.teacher is not None:
                    stack.enter_context(FrozenShards(self.teacher, (), device))
            else:
                self.model.to(device)
                if self.teacher is not None:
                    self.teacher.to(device)
            some = sequences[:: max(1, len(sequences) // config.metric_sequences)]
            attachment = stack.enter_context(
                Attachment(
                    self.model,
                    config,
                    [ids[None] for ids in some[: config.metric_sequences]],
                    shard_on=device if config.shard_frozen_weights else None,
                )
            )
            if self.output_dir is not None:
                check_writable(directory, needed_bytes(attachment, config))
            keep_best = config.keep_best and eval_dataset is not None
            attach_certificate(self.model, None)  # it is of the weights as they were
            stats = self._run(
                config, arguments, attachment, sequences, measured, checkpoint, keep_best
            )
        self.model.eval()
        return stats | {
            "perplexity_of": "training" if eval_dataset is None else "evaluation",
            "settings": config.to_dict(),
        }

    def _run(
        self,
        config: TrainingConfig,
        arguments: TrainingArguments,
        attachment: Attachment,
        sequences: list[Tensor],
        measured: list[Tensor],
        checkpoint: Path | None,
        keep_best: bool,
    ) -> dict[str, Any]:
        original = None
        if config.loss != "lm":
            original = Original(self.model, self.teacher)

        def measure(share: slice = slice(None)) -> tuple[float, int]:
            kept_share, attachment.bases.kept_share = attachment.bases.kept_share, 1.0
            with autocast(arguments):
                result = score_sequences(self.model, measured[share], batch_size=config.batch_size)
            attachment.bases.kept_share = kept_share
            return result.total_nll, result.num_tokens

        def own_share() -> tuple[float, int]:
            if config.shard_frozen_weights:  # which all processes must gather equally often
                return measure()
            own = slice(arguments.process_index, None, arguments.world_size)
            return measure(own) if measured[own] else (0.0, 0)

        def set_rank(step: int) -> None:
            if config.nested_ranks:
                chooser = random.Random(f"{config.seed} {step}")
                attachment.bases.kept_share = chooser.choice(config.nested_ranks)

        def keep(perplexity: float, step: int) -> None:
            if keep_best:
                best.offer(perplexity, step)

        callbacks = []
        if config.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
        trainer = LatentTrainer(
            attachment=attachment,
            objective=Objective(config, original, attachment.metrics_by_layer()),
            measure=own_share,
            on_step=set_rank,
            on_evaluation=keep,
            args=arguments,
            data_collator=collate,
            train_dataset=[*({"input_ids": ids} for ids in sequences), EMPTY],
            eval_dataset=[{"input_ids": ids} for ids in measured],
            callbacks=callbacks,
            optimizers=(
                make_optimizer(
                    attachment.parameters,
                    width=attachment.width,
                    euclidean_lr=config.euclidean_lr,
                    riemannian_lr=config.riemannian_lr,
                    learning_rate_scale=config.learning_rate_scale,
                    weight_decay=config.weight_decay,
                ),
                None,
            ),
        )
        best = BestWeights(attachment.model, trainer.trained_names)
        self.model.eval()
        before = _perplexity(measure())
        keep(before, 0)
        try:
            result = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        finally:
            trainer.close()
        evaluating = sum(record.get("eval_seconds", 0.0) for record in trainer.state.log_history)
        seconds = result.metrics["train_runtime"] - evaluating
        attachment.bases.kept_share = 1.0
        self.model.eval()
        last = after = _perplexity(measure())
        steps = kept_step = trainer.state.global_step
        if keep_best and best.perplexity < last:
            best.restore()
            after, kept_step = best.perplexity, best.step
        return {
            "train_loss": result.training_loss,
            "losses": [
                record
                for record in trainer.state.log_history
                if "loss" in record or "eval_loss" in record
            ],
            "perplexity_before": before,
            "perplexity_after": after,
            "perplexity_last": last,
            "kept_step": kept_step,
            "orthonormality_error": attachment.bases.orthonormality_error(),
            "steps": steps,
            "tokens": trainer.num_tokens,
            "seconds": seconds,
            "tokens_per_second": trainer.num_tokens / seconds,
            "peak_memory_bytes": _peak_memory_bytes(arguments.device),
            "trainable_parameters": sum(p.parameter.numel() for p in attachment.parameters),
        }

    def _check_tokens(self, sequences: Sequence[Tensor]) -> None:
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        largest = max(int(ids.max()) for ids in sequences)
        if largest >= vocabulary or min(int(ids.min()) for ids in sequences) < 0:
            raise ConfigError(
                f"the data set holds token {largest}, but the model's vocabulary has {vocabulary} "
                "tokens; use the model's own tokenizer"
            )

    def _checkpoint(self, wanted: bool | str | Path) -> Path | None:
        if wanted is False:
            return None
        if wanted is not True:
            return Path(wanted)
        found = None if self.output_dir is None else last_checkpoint(self.output_dir)
        if found is None:
            raise ConfigError(
                f"there is no complete checkpoint in {self.output_dir} to resume from; start "
                "without resume_from_checkpoint, with save_steps"
            )
        return found


def _perplexity(totals: tuple[float, int]) -> float:
    return math.exp(totals[0] / totals[1])


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
