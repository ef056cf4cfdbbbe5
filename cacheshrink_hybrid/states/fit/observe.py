"""Second moments of recurrent states, of what reads them, and of what errors in them cost.

A state S (P, N) of one head is read by C (N,): y = S C. Leaving directions out changes y by S E C,
and the loss by (S^T g) . E C, g = dLoss/dy. So three things are collected per layer: E[C C^T] of
each group; E[u u^T] with u = S^T g of each head, which has seen decay, gate, norm, output
projection and all later layers; and the states' own second moment, which rounding errors go with.
All of them are found in the pass and the backward pass that keys and values are calibrated with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import CalibrationError
from ...linear_map import weight_and_bias
from ...methods import METRICS
from ...spec import LayerSpec, ModelSpec
from ..kinds import compressible_layers
from ..mixers.installation import observed_mixers
from ..mixers.mixer import RecurrentMixer
from .bases import GroupMoments


@dataclass(frozen=True, slots=True, kw_only=True)
class StateStatistics:
    """Moments of one recurrent layer.

    Attributes:
        layer_idx: cache layer.
        reads: E[C C^T] (queries of a delta rule), (G, N, N).
        writes: E[k k^T] of B, or of the keys of a delta rule, (G, N, N).
        costs: E[u u^T], summed over the heads of a group, in units of loss, (G, N, N).
        states: E[S^T S] of each head, (M, N, N).
        output_costs: loss per head of |error of y|^2 spread evenly over its values, (M,).
        outputs: E|y|^2 summed over all heads.
        memory: tokens after which a head's state has decayed to 1/e, by its mean decay, (M,).
        num_tokens: tokens that were counted.
    """

    layer_idx: int
    reads: Tensor
    writes: Tensor
    costs: Tensor
    states: Tensor
    output_costs: Tensor
    outputs: float
    memory: Tensor
    num_tokens: int

    def group(self, index: int) -> GroupMoments:
        """Moments of one group."""
        return GroupMoments(self.reads[index], self.writes[index], self.costs[index])

    @property
    def group_states(self) -> Tensor:
        """E[S^T S] summed over the heads of each group, (G, N, N)."""
        G = self.reads.shape[0]
        return self.states.unflatten(0, (G, -1)).sum(1)


class _Layer:
    """Running sums of one layer, float64 on the CPU."""

    def __init__(self, layer: LayerSpec) -> None:
        assert layer.state is not None
        spec = layer.state
        G, M, N = spec.num_groups, spec.num_heads, spec.state_size
        self.layer_idx, self.groups = layer.layer_idx, G
        self.reads, self.writes, self.costs = (
            torch.zeros(G, N, N, dtype=torch.float64) for _ in range(3)
        )
        self.states = torch.zeros(M, N, N, dtype=torch.float64)
        self.output_costs = torch.zeros(M, dtype=torch.float64)
        self.log_decay = torch.zeros(M, dtype=torch.float64)
        self.outputs = 0.0
        self.tokens = self.looks = 0


class StateCalibration:
    """Watches the recurrent layers of a source model while text runs through it.

    Args:
        model: the source model.
        spec: its spec.
        metric: a row of `METRICS` that reads text, as for keys and values.
    """

    def __init__(self, model: PreTrainedModel, spec: ModelSpec, metric: str) -> None:
        self.metric = METRICS[metric]
        self.counting = True
        self.layers = compressible_layers(spec)
        self._mixers = [
            (model.get_submodule(layer.state.module_name), layer.state)
            for layer in self.layers
            if layer.state is not None
        ]
        self._sums = {layer.layer_idx: _Layer(layer) for layer in self.layers}

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Within this context every pass of the model is counted, while `counting` is set."""
        with observed_mixers(self._mixers, self._see):
            yield

    def _see(
        self, mixer: RecurrentMixer, inputs: Sequence[Tensor], reads: Tensor, y: Tensor
    ) -> None:
        if self.metric.backward and not y.requires_grad:
            y.requires_grad_(True)  # also when a checkpointed layer runs again on the way back
        if not self.counting:
            return
        kept = [x.detach() for x in inputs], reads.detach()
        sums = self._sums[mixer.layer_idx]
        with torch.no_grad():
            sums.reads += _moment(kept[1])
            sums.outputs += float(y.detach().double().square().sum())
            sums.tokens += y.shape[0] * y.shape[1]
        if self.metric.backward:

            def on_gradient(gradient: Tensor) -> None:
                # Nothing is recorded for what is computed here, inside the backward pass.
                with torch.no_grad():
                    self._count(mixer, sums, *kept, gradient)

            y.register_hook(on_gradient)
        else:
            with torch.no_grad():
                self._count(mixer, sums, *kept, None)

    def _count(
        self,
        mixer: RecurrentMixer,
        sums: _Layer,
        inputs: Sequence[Tensor],
        reads: Tensor,
        gradient: Tensor | None,
    ) -> None:
        weights = None if gradient is not None else self._output_weights(mixer, reads)
        for costs, states, decay, writes in mixer.passes(inputs, reads, gradient):
            sums.writes += _moment(writes)
            sums.log_decay += decay.double().sum((0, 1)).cpu()
            if costs is not None:
                per_head_costs = _moment(costs)
                sums.costs += 0.5 * per_head_costs.unflatten(0, (sums.groups, -1)).sum(1)
            weighted = states.double()  # so that the moment is symmetric
            if weights is not None:
                weighted = weighted * weights.double().sqrt()[..., None]
            sums.states += torch.einsum("bmpn,bmpk->mnk", weighted, weighted).cpu()
            sums.looks += states.shape[0]
        if gradient is not None:
            sums.output_costs += 0.5 * gradient.double().square().sum((0, 1, 3)).cpu()
        elif weights is not None:
            sums.output_costs += weights.double().sum(-1).cpu() * reads.shape[0] * reads.shape[1]

    def _output_weights(self, mixer: RecurrentMixer, reads: Tensor) -> Tensor:
        """(M, P): what an output's squared error counts without a gradient."""
        M = len(self._sums[mixer.layer_idx].log_decay)
        weight = weight_and_bias(mixer.output_projection)[0]
        if not self.metric.weighs_outputs:
            return torch.ones(weight.shape[1], device=reads.device).view(M, -1)
        columns = weight.detach().float().square().sum(0).view(M, -1)
        return columns / columns.mean()

    def statistics(self) -> list[StateStatistics]:
        """Moments per layer, in layer order.

        Raises:
            CalibrationError: no tokens, or non-finite numbers.
        """
        return [self._finished(self._sums[layer.layer_idx]) for layer in self.layers]

    def _finished(self, sums: _Layer) -> StateStatistics:
        if not sums.tokens:
            raise CalibrationError("no calibration tokens were given; pass calibration_texts")
        states = sums.states / max(1, sums.looks)
        costs = sums.costs / sums.tokens
        if not self.metric.backward:
            costs = states.unflatten(0, (sums.groups, -1)).sum(1)
        result = StateStatistics(
            layer_idx=sums.layer_idx,
            reads=sums.reads / sums.tokens,
            writes=sums.writes / sums.tokens,
            costs=costs,
            states=states,
            output_costs=sums.output_costs / sums.tokens,
            outputs=sums.outputs / sums.tokens,
            memory=-sums.tokens / sums.log_decay.clamp_max(-1e-9),
            num_tokens=sums.tokens,
        )
        for name in ("reads", "costs", "states"):
            if not torch.isfinite(getattr(result, name)).all():
                raise CalibrationError(
                    f"the {name} of recurrent layer {sums.layer_idx} are not finite after "
                    f"{sums.tokens} tokens; run calibration in float32 or bfloat16"
                )
        return result


def _moment(vectors: Tensor) -> Tensor:
    """Sum of outer products of vectors (B, T, G, N), (G, N, N), float64 on the CPU."""
    rows = vectors.flatten(0, 1).transpose(0, 1).to("cpu", torch.float64)
    return rows.transpose(-1, -2) @ rows
