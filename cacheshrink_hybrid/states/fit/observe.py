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
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import CalibrationError
from ...linear_map import weight_and_bias
from ...spec import LayerSpec, ModelSpec
from ..mixers.gated_delta_net import GatedDeltaNetMixer
from ..mixers.mamba1 import Mamba1Mixer
from ..mixers.mamba2 import Mamba2Mixer
from ..mixers.mixer import COMPRESSIBLE_KINDS, RecurrentMixer, observed_mixers
from ..scans.delta_rule import delta_scan_with_corrections
from ..scans.selective import selective_step
from ..scans.ssd import CHUNK, gated_scan, per_head

MAMBA1_SAMPLES = 8
"""Every how many tokens Mamba-1's states are looked at; its scan shows them one by one."""


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
        metric: `fisher`, `score` or `activation`, as for keys and values. `score` weighs an output
            with its column of the output projection.
    """

    def __init__(self, model: PreTrainedModel, spec: ModelSpec, metric: str) -> None:
        self.metric = metric
        self.counting = True
        self.layers = compressible_layers(spec)
        self._mixers = {
            layer.layer_idx: (model.get_submodule(layer.state.module_name), layer.state.kind)
            for layer in self.layers
            if layer.state is not None
        }
        self._sums = {layer.layer_idx: _Layer(layer) for layer in self.layers}

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Within this context every pass of the model is counted, while `counting` is set."""
        with observed_mixers(self._mixers, self._see):
            yield

    def _see(
        self, mixer: RecurrentMixer, inputs: Sequence[Tensor], reads: Tensor, y: Tensor
    ) -> None:
        if self.metric == "fisher" and not y.requires_grad:
            y.requires_grad_(True)  # also when a checkpointed layer runs again on the way back
        if not self.counting:
            return
        kept = [x.detach() for x in inputs], reads.detach()
        sums = self._sums[mixer.layer_idx]
        with torch.no_grad():
            sums.reads += _moment(kept[1])
            sums.outputs += float(y.detach().double().square().sum())
            sums.tokens += y.shape[0] * y.shape[1]
        if self.metric == "fisher":

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
        for costs, states, decay, writes in _passes(mixer, inputs, reads, gradient):
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
        projection = mixer.o_proj if hasattr(mixer, "o_proj") else mixer.out_proj
        if self.metric == "activation":
            return torch.ones(projection.in_features, device=reads.device).view(M, -1)
        columns = weight_and_bias(projection)[0].detach().float().square().sum(0).view(M, -1)
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
        if self.metric != "fisher":
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


def compressible_layers(spec: ModelSpec) -> tuple[LayerSpec, ...]:
    """The recurrent layers that a conversion can change."""
    return tuple(
        layer
        for layer in spec.state_layers
        if layer.state is not None and layer.state.kind in COMPRESSIBLE_KINDS
    )


def _moment(vectors: Tensor) -> Tensor:
    """Sum of outer products of vectors (B, T, G, N), (G, N, N), float64 on the CPU."""
    rows = vectors.flatten(0, 1).transpose(0, 1).to("cpu", torch.float64)
    return rows.transpose(-1, -2) @ rows


def _passes(
    mixer: RecurrentMixer, inputs: Sequence[Tensor], reads: Tensor, gradient: Tensor | None
) -> Iterator[tuple[Tensor | None, Tensor, Tensor, Tensor]]:
    """(u (B, T, M, N) or None, a state (B, M, P, N), decay (B, T, M), writes (B, T, G, N)) of one
    stretch of tokens after another."""
    groups = reads.shape[2]
    if isinstance(mixer, Mamba1Mixer):
        yield from _mamba1_passes(mixer, inputs, reads, gradient)
        return
    if isinstance(mixer, Mamba2Mixer):
        x, dt, write = inputs
        write = write.unflatten(-1, (groups, -1))
        values, log_decay = x * dt[..., None], dt * -torch.exp(mixer.A_log.detach().float())
    else:
        assert isinstance(mixer, GatedDeltaNetMixer)
        key, value, log_decay, beta = inputs
        write = key.unflatten(-1, (groups, -1))
        _, _, values = delta_scan_with_corrections(
            None, write, value, log_decay, beta, reads[:, :0]
        )
    M = values.shape[2]
    keys = per_head(write, M)
    state = None
    for start in range(0, values.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        # With the roles of values and keys exchanged, the scan's state is S^T, and what g reads
        # from it is u = S^T g.
        read = values[:, part][:, :0] if gradient is None else gradient[:, part].float()
        costs, state = gated_scan(state, keys[:, part], log_decay[:, part], values[:, part], read)
        yield (
            None if gradient is None else costs,
            state.transpose(-1, -2),
            log_decay[:, part],
            write[:, part],
        )


def _mamba1_passes(
    mixer: Mamba1Mixer, inputs: Sequence[Tensor], reads: Tensor, gradient: Tensor | None
) -> Iterator[tuple[Tensor | None, Tensor, Tensor, Tensor]]:
    x, dt, write = inputs
    write = write.unflatten(-1, (reads.shape[2], -1))
    A = mixer.decay_rates().detach()
    state = x.new_zeros(x.shape[0], *x.shape[2:], write.shape[-1])
    for start in range(0, x.shape[1], MAMBA1_SAMPLES):
        part = slice(start, start + MAMBA1_SAMPLES)
        costs = []
        for t in range(*part.indices(x.shape[1])):
            _, state = selective_step(state, x[:, t], dt[:, t], A, write[:, t], reads[:, t])
            if gradient is not None:
                costs.append(torch.einsum("bmp,bmpn->bmn", gradient[:, t].float(), state))
        decay = (dt[:, part, ..., None] * A).mean((-1, -2))
        yield (torch.stack(costs, dim=1) if costs else None), state, decay, write[:, part]


def mixer_modules(model: PreTrainedModel, spec: ModelSpec) -> dict[int, nn.Module]:
    """The mixers that can be compressed, by cache layer."""
    return {
        layer.layer_idx: model.get_submodule(layer.state.module_name)
        for layer in compressible_layers(spec)
        if layer.state is not None
    }
