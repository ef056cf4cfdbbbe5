"""The loss of one batch: which passes it takes, and how their parts are weighted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..next_token import distillation_loss, language_model_loss
from .data import real_tokens
from .losses import metric_loss, relative_loss
from .settings import TrainingConfig
from .targets import Original, RebuiltObserver, latent_layers, matched_outputs


@dataclass
class Objective:
    """Loss of a batch, summed over its tokens.

    Attributes:
        config: which loss, and its weights.
        original: where targets come from; None for `lm`.
        metrics: by cache layer, what errors in [k; v] cost; for `reconstruction`.
    """

    config: TrainingConfig
    original: Original | None
    metrics: dict[int, Tensor]

    def __post_init__(self) -> None:
        self._observer = None
        if self.config.loss == "reconstruction":
            assert self.original is not None
            self._observer = RebuiltObserver(self.original.model)

    def close(self) -> None:
        """Remove its hooks from the model."""
        if self._observer is not None:
            self._observer.close()

    def __call__(self, model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Sum over tokens.

        Args:
            model: the converted model, perhaps wrapped for several processes.
            input_ids, labels: (B, T), as from `collate`.
        """
        if self.config.loss == "local":
            return self._local(model, input_ids, labels)
        if self.config.loss == "distillation":
            return self._distillation(model, input_ids, labels)
        if self.config.loss == "reconstruction":
            return self._reconstruction(model, input_ids, labels)
        return language_model_loss(_logits(model, input_ids), labels)

    def _distillation(self, model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
        assert self.original is not None
        taught = self.original.logits(input_ids)
        logits = _logits(model, input_ids)
        return distillation_loss(
            logits,
            taught,
            labels,
            self.config.distillation_temperature,
            self.config.distillation_alpha,
        )

    def _reconstruction(self, model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
        assert self.original is not None and self._observer is not None
        targets = self.original.key_values(input_ids)
        with self._observer.collecting() as rebuilt:
            logits = _logits(model, input_ids)
        mask = real_tokens(labels)
        errors = logits.new_zeros((), dtype=torch.float32)
        layers = latent_layers(self.original.model)
        for layer_idx, output in rebuilt.items():
            # The metric is of what the bases give.
            given, due = (
                layers[layer_idx].head.in_block(y, 0) for y in (output, targets[layer_idx])
            )
            metric = self.metrics[layer_idx].to(output.device, torch.float32)
            errors = errors + metric_loss(given, due, metric, mask)
        alpha = self.config.reconstruction_alpha
        return alpha * errors + (1 - alpha) * language_model_loss(logits, labels)

    def _local(self, model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
        assert self.original is not None
        mask = real_tokens(labels)

        def loss(output: Tensor, target: Tensor) -> Tensor:
            return relative_loss(output, target, mask)

        # A teacher of its own would see other inputs; the model's own source layers are run here.
        with matched_outputs(self.original, loss) as losses:
            _logits(model, input_ids)
        return torch.stack(losses).mean()


def _logits(model: nn.Module, input_ids: Tensor) -> Tensor:
    return model(input_ids=input_ids, use_cache=False).logits
