"""What each layer gets, and what it costs in bytes: the result of a conversion, as plain data.

A `CompressionPlan` holds everything that is needed to rebuild the latent modules around a source
config; the weights come from the checkpoint. It prints as a table and travels as JSON.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container
from dataclasses import asdict, dataclass, field
from typing import Any

from .certificate import Certificate
from .latents.plan import LatentPlan
from .methods import METRICS
from .spec import LayerSpec, ModelSpec
from .states.plan import StatePlan
from .text_tables import fitting_table

TOTAL_LENGTHS = (1024, 8192, 32768)
"""Tokens of the texts whose bytes are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionPlan:
    """The plan of a whole model.

    Attributes:
        model_type: family of the source model.
        source_bytes_per_token: KV bytes per token before, at 16 bits per element.
        kept_bytes_per_token: part of them that attention layers left as they are still take.
        latents: one entry per converted attention module.
        metric: what `predicted_loss` is measured in.
        settings: the `CompressionConfig` that led here, as a dict.
        device: name of the `DeviceProfile` that read times are modelled for; empty for unknown.
        states: one entry per converted recurrent layer.
        source_state_bytes: bytes of all states of one sequence before: recurrent states in float32,
            as every model keeps them, and convolution columns at 16 bits.
        kept_state_bytes: part of them in recurrent layers left as they are.
        calibrated_on: the text that bases were fitted to, in words; empty for none.
        certificate: what the conversion was measured to cost; None where no text was held out that
            reads something coded, and for other weights.
        cross: what cross-attention stores of every vector that an encoder puts out, as a plan of
            its own; None in a model without an encoder. All else here is of the decoder's tokens.
    """

    model_type: str
    source_bytes_per_token: int
    kept_bytes_per_token: int
    latents: tuple[LatentPlan, ...]
    metric: str
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    states: tuple[StatePlan, ...] = ()
    source_state_bytes: int = 0
    kept_state_bytes: int = 0
    calibrated_on: str = ""
    certificate: Certificate | None = None
    cross: CompressionPlan | None = None

    @property
    def state_bytes(self) -> int:
        """Bytes of all states of one sequence after conversion."""
        return self.kept_state_bytes + sum(state.bytes_per_sequence for state in self.states)

    @property
    def state_ratio(self) -> float:
        return self.source_state_bytes / self.state_bytes if self.state_bytes else 1.0

    @property
    def bytes_per_token(self) -> int:
        """KV bytes per token after conversion, over all layers."""
        stored = sum(latent.bytes_per_token * len(latent.layer_ids) for latent in self.latents)
        return self.kept_bytes_per_token + stored

    @property
    def head_groups(self) -> int:
        """Groups of heads with latents of their own in every layer; 1 where there are none."""
        return math.gcd(*(latent.head_groups for latent in self.latents)) or 1

    def latents_of(self, layers: Container[int]) -> list[LatentPlan]:
        """Entries of the modules of these layers."""
        return [x for x in self.latents if any(layer in layers for layer in x.layer_ids)]

    def bytes_on_each(self, devices: int) -> int:
        """KV bytes per token on each of so many devices that heads are split over."""
        stored = sum(x.part(devices).bytes_per_token * len(x.layer_ids) for x in self.latents)
        return self.kept_bytes_per_token // devices + stored

    @property
    def compression_ratio(self) -> float:
        return self.source_bytes_per_token / self.bytes_per_token if self.bytes_per_token else 1.0

    def exact_bytes(self, num_tokens: int) -> int:
        """Bytes of the exact rows of one sequence of `num_tokens`."""
        return sum(x.exact_bytes(num_tokens) * len(x.layer_ids) for x in self.latents)

    def bytes_at(self, spec: ModelSpec, num_tokens: int) -> int:
        """Bytes of one sequence of `num_tokens`: rows of all tokens that are held, exact rows, and
        states.

        Args:
            spec: of the source model; says how far each layer's window reaches.
        """
        by_layer = {idx: latent for latent in self.latents for idx in latent.layer_ids}
        total = self.state_bytes + self.exact_bytes(num_tokens)
        for layer in spec.attention_layers:
            assert layer.attention is not None
            held = min(num_tokens, layer.attention.sliding_window or num_tokens)
            latent = by_layer.get(layer.layer_idx)
            stored = layer.bytes_per_token if latent is None else latent.bytes_per_token
            total += held * stored
        return total

    @property
    def predicted_loss(self) -> float:
        """Of keys and values, in units of the metric, on the text that was fitted to."""
        return sum(latent.predicted_loss for latent in self.latents)

    @property
    def held_out_loss(self) -> float | None:
        """As `predicted_loss`, on text that was kept from fitting; None where none was."""
        losses = [latent.held_out_loss for latent in self.latents]
        known = [loss for loss in losses if loss is not None]
        return sum(known) if losses and len(known) == len(losses) else None

    @property
    def state_loss(self) -> float:
        """Of recurrent states, cut and rounded, in units of the metric."""
        return sum(state.predicted_loss + state.rounding_loss for state in self.states)

    @property
    def total_loss(self) -> float:
        return self.predicted_loss + self.state_loss

    @property
    def error_bound(self) -> float:
        return sum(latent.error_bound for latent in self.latents)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompressionPlan:
        latents = tuple(LatentPlan.from_dict(latent) for latent in values["latents"])
        states = tuple(StatePlan.from_dict(state) for state in values.get("states", ()))
        certificate = values.get("certificate")
        cross = values.get("cross")
        return cls(
            **{
                **values,
                "latents": latents,
                "states": states,
                "certificate": None if certificate is None else Certificate.from_dict(certificate),
                "cross": None if cross is None else cls.from_dict(cross),
            }
        )

    def rows(self, spec: ModelSpec) -> list[dict[str, Any]]:
        """One record per cache layer, in order: what it stores before and after."""
        return plan_records(self, spec)

    def table(self, spec: ModelSpec) -> str:
        """The plan as an aligned text table with a line for each memory."""
        return plan_table(self, spec)


def plan_records(plan: CompressionPlan, spec: ModelSpec) -> list[dict[str, Any]]:
    """One record per cache layer, in order: what it stores before and after."""
    by_layer = {idx: latent for latent in plan.latents for idx in latent.layer_ids}
    records = []
    for layer in spec.layers:
        latent = by_layer.get(layer.layer_idx)
        record: dict[str, Any] = {"layer": layer.layer_idx, "mixer": layer.mixer or "-"}
        record |= _state_record(plan, layer)
        if layer.reads is not None:
            record |= {"attention": f"reads layer {layer.reads}"}
        elif layer.attention is None:
            record |= {"attention": "-"}
        else:
            window = layer.attention.sliding_window
            record |= {
                "attention": "full" if window is None else f"window {window}",
                "source B/token": layer.bytes_per_token,
            }
            if latent is None:
                record |= {"stored B/token": layer.bytes_per_token, "method": "original"}
            else:
                record |= {
                    "stored B/token": latent.bytes_per_token,
                    "method": latent.method,
                    "rank": latent.kv_lora_rank,
                    "bits": latent.widths,
                    "K/V rank": f"{latent.key_rank}/{latent.value_rank}",
                    "read": latent.read_mode,
                    "predicted loss": _loss(latent) / len(latent.layer_ids),
                    "relative error": latent.relative_error,
                    "read ns/token": latent.read_ns,
                }
                if latent.joint_loss is not None:
                    layers = len(latent.layer_ids)
                    record |= {
                        "joint's loss": latent.joint_loss / layers,
                        "joint's ns/token": latent.joint_read_ns,
                    }
        records.append(record)
    return records


def _state_record(whole: CompressionPlan, layer: LayerSpec) -> dict[str, Any]:
    """The state columns of one layer."""
    if layer.state is None:
        return {}
    plan = next((state for state in whole.states if state.layer_idx == layer.layer_idx), None)
    record: dict[str, Any] = {"source state B": layer.bytes_per_sequence}
    if plan is None:
        return record | {"stored state B": layer.bytes_per_sequence, "state": "original"}
    return record | {
        "stored state B": plan.bytes_per_sequence,
        "state": plan.method,
        "heads": plan.codes,
        "replay": plan.replay_length,
        "state loss": plan.predicted_loss + plan.rounding_loss,
        "state error": plan.relative_error,
    }


def plan_table(plan: CompressionPlan, spec: ModelSpec) -> str:
    """The plan as an aligned text table with a line for each memory."""
    lines = [f"calibrated on {plan.calibrated_on}"] if plan.calibrated_on else []
    lines.append(fitting_table(plan_records(plan, spec)))
    if plan.source_bytes_per_token:
        lines.append(
            f"{plan.source_bytes_per_token} -> {plan.bytes_per_token} bytes per token "
            f"({plan.compression_ratio:.2f}x at 16 bits)"
            + (f", {key_value_prediction(plan)}" if plan.latents else "")
        )
    if spec.caches_latents and plan.bytes_per_token:
        expanded = spec.expanded_bytes_per_token
        lines.append(
            f"the source caches latents, in {plan.source_bytes_per_token} bytes per token; keys "
            f"and values of all its heads would take {expanded} "
            f"({expanded / plan.bytes_per_token:.1f}x)"
        )
    if any(latent.joint_loss is not None for latent in plan.latents):
        lines.append(kinds_line(plan))
    if plan.head_groups > 1:
        lines.append(
            f"{plan.head_groups} groups of heads have latents of their own: on each of so many "
            f"devices a token takes {plan.bytes_on_each(plan.head_groups)} bytes"
        )
    if plan.exact_bytes(1):
        lines.append(exact_tokens_line(plan))
    if plan.source_state_bytes:
        lines.append(
            f"{plan.source_state_bytes} -> {plan.state_bytes} bytes of state per sequence "
            f"({plan.state_ratio:.2f}x)" + (f", {state_prediction(plan)}" if plan.states else "")
        )
    if plan.cross is not None and spec.cross is not None:
        lines += ["of what the encoder puts out:", plan_table(plan.cross, spec.cross)]
    if plan.certificate is not None:
        lines += [str(plan.certificate), plan.certificate.circumstances]
    return "\n".join(lines)


def kinds_line(plan: CompressionPlan) -> str:
    """Which kinds were taken where, and what they lose and take beside joint latents."""
    weighed = [latent for latent in plan.latents if latent.joint_loss is not None]
    counts = Counter(latent.method for latent in weighed for _ in latent.layer_ids)
    kinds = ", ".join(f"{method} in {count}" for method, count in counts.most_common())
    ns, joint_ns = (
        sum((getattr(latent, name) or 0.0) * len(latent.layer_ids) for latent in weighed)
        for name in ("read_ns", "joint_read_ns")
    )
    loss, joint_loss = sum(map(_loss, weighed)), sum(x.joint_loss or 0.0 for x in weighed)
    return (
        f"kinds by loss and speed: {kinds} of {counts.total()} layers, which are to lose "
        f"{loss:.4g} {_unit(plan)} and read a token in {ns:.4g} ns by the model of {plan.device}; "
        f"joint latents {joint_loss:.4g} {_unit(plan)} in {joint_ns:.4g} ns"
    )


def exact_tokens_line(plan: CompressionPlan) -> str:
    """How many tokens stay exact, and what that adds to the bytes per token of a text."""
    sinks, window = (
        max(getattr(latent, name) for latent in plan.latents)
        for name in ("exact_sinks", "exact_window")
    )
    added = ", ".join(
        f"{plan.bytes_per_token + plan.exact_bytes(n) / n:.0f} at {n // 1024}k"
        for n in TOTAL_LENGTHS
    )
    kept = [f"the first {sinks}"] * bool(sinks) + [f"the last {window}"] * bool(window)
    return (
        f"{' and '.join(kept)} tokens are exact as well: {plan.bytes_per_token} "
        f"bytes per token without them, with them {added} tokens"
    )


def _loss(latent: LatentPlan) -> float:
    return latent.predicted_loss if latent.held_out_loss is None else latent.held_out_loss


def key_value_prediction(plan: CompressionPlan) -> str:
    """What keys and values are to lose, and on which text that was found."""
    if plan.held_out_loss is None:
        return _fitted_loss(plan, plan.predicted_loss)
    return f"predicted loss {plan.held_out_loss:.4g} {_unit(plan)} on held-out calibration text"


def state_prediction(plan: CompressionPlan) -> str:
    """What recurrent states are to lose, and on which text that was found."""
    return _fitted_loss(plan, plan.state_loss)


def _fitted_loss(plan: CompressionPlan, loss: float) -> str:
    text = " on the calibration text itself" if plan.calibrated_on else ""
    return f"predicted loss {loss:.4g} {_unit(plan)}{text}"


def _unit(plan: CompressionPlan) -> str:
    metric = METRICS.get(plan.metric)
    return metric.unit if metric is not None and metric.unit else f"{plan.metric} units"
