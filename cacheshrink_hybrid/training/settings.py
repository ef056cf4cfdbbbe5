"""What a user can set about fine-tuning, checked as a whole."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import ConfigError, misplaced_settings, unknown_names
from ..integers import NUMPY_SEEDS, count_fault, seed_fault

METRICS = ("fisher", "activation")
LOSSES = ("lm", "reconstruction", "distillation", "local")
EXTRAS = ("norms", "queries", "outputs")
SCHEDULES = ("constant", "linear", "cosine", "constant_with_warmup")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of `MLATrainer`.

    Attributes:
        loss: `lm` (next token), `reconstruction` (lm, and keys and values like the original's),
            `distillation` (lm, and the original's next-token distribution; brings most back) or
            `local` (each attention's output like the original's, on the original's inputs). None
            for `distillation` where the original is at hand, else `lm`.
        reconstruction_alpha: weight of the reconstruction, 1 - alpha of the lm loss.
        distillation_alpha: weight of the distillation, 1 - alpha of the lm loss.
        distillation_temperature: divides logits before they are compared.
        euclidean_lr, riemannian_lr: plain learning rates of AdamW (encoders, biases, extras) and
            RiemannianAdam (bases); None for steps in proportion to each tensor.
        learning_rate_scale: multiplies all learning rates.
        constrained: keep bases orthonormal in the metric; False trains them with AdamW.
        metric: to keep them orthonormal in: `fisher` (what errors cost the loss) or `activation`
            (plain length).
        metric_damping: share of its largest eigenvalue added to the metric's diagonal.
        metric_sequences: training sequences to measure the metric on.
        extras: also trained, by AdamW: `norms` (gains), `queries`, `outputs` (the attention's
            query and output projections). They cost nothing at inference, and let the model use
            what is left of keys and values. None for all of them, with `local` for none.
        nested_ranks: shares of each basis's channels, such as (1.0, 0.5): every step trains with a
            random one, first channels first, so that the model can be cut to any of them later.
        num_epochs: passes over the data set; not used if `max_steps` is given.
        max_steps: optimizer steps.
        batch_size: sequences per forward pass, on each process.
        gradient_accumulation_steps: forward passes per optimizer step.
        max_length: tokens per sequence; longer texts are cut into several.
        warmup_steps: steps over which learning rates rise.
        lr_scheduler_type: one of `SCHEDULES`.
        weight_decay: of trained Euclidean matrices.
        max_grad_norm: gradients are clipped to this length; 0 for no clipping.
        bf16: compute in bfloat16 beside float32 weights; None for: if the model is in bfloat16.
        gradient_checkpointing: compute activations again on the way back, to save memory.
        shard_frozen_weights: cut what does not train, and a teacher, over the processes: each keeps
            its share, and has that of one layer whole while it runs. Every process loads the whole
            model; if it does not fit one device, load it on the CPU, where it is again after
            training. Beside float32 weights, `bf16` makes copies of them that last until the way
            back: load such a model in bfloat16, or use `gradient_checkpointing`. Every process
            scores all evaluation texts. After an error the model is of no use; load it anew.
        eval_steps: steps between evaluations; None for before and after training only.
        early_stopping_patience: evaluations without a better perplexity before training stops and
            the best weights are restored; needs `eval_steps`.
        keep_best: end with the best weights of all evaluations, those from before training among
            them, where evaluation texts are given; False for the last ones.
        save_steps: steps between checkpoints to resume from; None for none.
        save_total_limit: checkpoints kept.
        logging_steps: steps between log lines. They have the largest learning rate of bases and of
            all else (`lr_bases`, `lr_others`), and `grad_norm` of all that trains, before clipping.
        report_to: `none` or `tensorboard`, beside the console.
        seed: of data order, dropout, sampled labels and nested ranks.
    """

    loss: str | None = None
    reconstruction_alpha: float = 0.3
    distillation_alpha: float = 0.5
    distillation_temperature: float = 1.0
    euclidean_lr: float | None = None
    riemannian_lr: float | None = None
    learning_rate_scale: float = 1.0
    constrained: bool = True
    metric: str = "fisher"
    metric_damping: float = 1e-4
    metric_sequences: int = 32
    extras: tuple[str, ...] | None = None
    nested_ranks: tuple[float, ...] = ()
    num_epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    max_length: int = 512
    warmup_steps: int = 10
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    shard_frozen_weights: bool = False
    eval_steps: int | None = None
    early_stopping_patience: int | None = None
    keep_best: bool = True
    save_steps: int | None = None
    save_total_limit: int = 2
    logging_steps: int = 10
    report_to: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("extras", "nested_ranks"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        faults = list(misplaced_settings(self)) or list(self._faults())
        if faults:
            raise ConfigError("; ".join(faults))

    def _faults(self):
        for name, allowed in (
            ("loss", LOSSES),
            ("metric", METRICS),
            ("lr_scheduler_type", SCHEDULES),
            ("report_to", ("none", "tensorboard")),
        ):
            value = getattr(self, name)
            if value not in allowed and (name, value) != ("loss", None):
                yield f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}"
        for name in ("reconstruction_alpha", "distillation_alpha"):
            yield from self._range(name, 0, 1)
        for name in ("distillation_temperature", "learning_rate_scale", "num_epochs"):
            yield from self._range(name, 0, math.inf, open_below=True)
        for name in ("euclidean_lr", "riemannian_lr"):
            if getattr(self, name) is not None:
                yield from self._range(name, 0, math.inf)
        for name in ("weight_decay", "max_grad_norm"):
            yield from self._range(name, 0, math.inf)
        yield from self._range("metric_damping", 0, 1, open_below=True)
        for name, least in (
            ("metric_sequences", 1),
            ("batch_size", 1),
            ("gradient_accumulation_steps", 1),
            ("max_length", 2),
            ("warmup_steps", 0),
            ("save_total_limit", 1),
            ("logging_steps", 1),
        ):
            fault = count_fault(name, getattr(self, name), least)
            if fault is not None:
                yield fault
        fault = seed_fault("seed", self.seed, NUMPY_SEEDS)
        if fault is not None:
            yield fault
        for name in ("max_steps", "eval_steps", "early_stopping_patience", "save_steps"):
            value = getattr(self, name)
            fault = None if value is None else count_fault(name, value, 1)
            if fault is not None:
                yield f"{fault}, or left out"
        for name in ("constrained", "gradient_checkpointing", "shard_frozen_weights", "keep_best"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name}={getattr(self, name)!r} must be True or False"
        if self.bf16 not in (None, True, False):
            yield f"bf16={self.bf16!r} must be True, False or None"
        unknown = [extra for extra in self.extras or () if extra not in EXTRAS]
        if unknown or isinstance(self.extras, str):
            yield f"extras={self.extras!r} are unknown; choose from {', '.join(EXTRAS)}"
        for share in self.nested_ranks:
            if not isinstance(share, (int, float)) or not 0 < share <= 1:
                yield f"nested_ranks={self.nested_ranks!r} must be shares above 0 and up to 1"
                break
        if self.early_stopping_patience is not None and self.eval_steps is None:
            yield "early_stopping_patience needs eval_steps, which says when to look"
        if self.loss == "local" and self.extras:
            yield (
                "extras are not trained by loss='local', which sees each attention alone; leave "
                "them out or take another loss"
            )

    def _range(self, name: str, low: float, high: float, *, open_below: bool = False):
        value = getattr(self, name)
        fine = isinstance(value, (int, float)) and not isinstance(value, bool)
        if fine and math.isfinite(value):
            fine = (low < value if open_below else low <= value) and value <= high
        else:
            fine = False
        if not fine:
            above = "above" if open_below else "at least"
            limit = "" if math.isinf(high) else f" and at most {high:g}"
            yield f"{name}={value!r} must be a number {above} {low:g}{limit}"

    def resolved(self, *, has_original: bool) -> TrainingConfig:
        """With `loss` and `extras` made definite."""
        loss, extras = self.loss, self.extras
        if loss is None:
            loss = "distillation" if has_original else "lm"
        if extras is None:
            extras = () if loss == "local" else EXTRAS
        return replace(self, loss=loss, extras=extras)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        fault = unknown_names(values, cls.__dataclass_fields__)
        if fault is not None:
            raise ConfigError(f"unknown settings {fault}")
        return cls(**values)

    @classmethod
    def merged(cls, config: TrainingConfig | None, named: dict[str, Any]) -> TrainingConfig:
        """`config`, or the settings that were given by name; not both."""
        if config is None:
            if isinstance(named.get("euclidean_lr"), cls):
                raise ConfigError("settings as a whole go by name: MLATrainer(..., config=...)")
            return cls.from_dict(named)
        if not isinstance(config, cls):
            raise ConfigError(f"config is a {type(config).__name__}; give a TrainingConfig")
        known = cls.__dataclass_fields__
        both = [n for n, value in named.items() if n not in known or value != known[n].default]
        if both:
            raise ConfigError(
                f"{', '.join(both)} and config both give settings; put all of them into config"
            )
        return config
