"""What an error in keys and values costs: one class per row of `METRICS`, with one interface.

fisher       E[g g^T] / 2 with g = dLoss/dy on the text, or on labels that the model draws: the
             second-order growth of the loss, in nats per token. It has seen queries, rotation,
             softmax, output projection and all later layers.
score        keys: E[(q . R e)^2] averaged over distances; values: |W_o e|^2. No backward pass.
activation   |e|^2, as in plain PCA of keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import CalibrationError
from ...linear_map import weight_and_bias
from ...next_token import IGNORED, overwrite_with_gradient
from ..attention.parts import AttentionParts, ReaderParts
from ..attention.split_heads import split_query
from .observe import inputs_of, observed_gradients
from .statistics import Moments

MAX_SCORE_DISTANCES = 64


class ActivationMetric:
    """M = I."""

    def __init__(self, parts: AttentionParts, sinks: int = 0) -> None:
        self.width = parts.width
        self.sinks = sinks

    @contextmanager
    def observing(self) -> Iterator[None]:
        yield

    def see(self, x: Tensor, layer_idx: int, key_value: Tensor) -> None:
        """Take note of one sequence's attention input x (1, T, E), and of its y = [k; v] behind the
        sinks."""

    def matrix(self, covariance: Tensor) -> Tensor:
        """M, (2*J*D, 2*J*D), given the covariance of y."""
        return torch.eye(self.width, dtype=torch.float64)

    def split_matrix(self) -> Tensor | None:
        """M over [k; v; u], (3*J*D, 3*J*D), see `LatentStatistics`; None where it is not known."""
        return None

    def first_matrix(self) -> Tensor | None:
        """M of first tokens, see `FirstTokens`; None where they are not apart."""
        return None


class FisherMetric(ActivationMetric):
    """M = E[g g^T] / 2, g the gradient of the summed loss with respect to one token's y.

    Args:
        split: watch [k; v; u] where keys rotate, see `observed_gradients`, and first tokens apart.
    """

    def __init__(self, parts: AttentionParts, sinks: int = 0, *, split: bool = False) -> None:
        super().__init__(parts, sinks)
        self.parts = parts
        self.split = split and parts.rotary is not None
        width = self.width + self.split * parts.key_width
        self.gradients = Moments(width)
        self.of_first = Moments(width) if split else None

    @contextmanager
    def observing(self) -> Iterator[None]:
        def see(gradients: Tensor) -> None:
            kept = gradients[self.sinks :]
            if self.of_first is not None:
                self.of_first.add(kept[:1])
                kept = kept[1:]
            self.gradients.add(kept)

        with observed_gradients(self.parts, see, split=self.split):
            yield

    def matrix(self, covariance: Tensor) -> Tensor:
        return 0.5 * self.gradients.second_moment[: self.width, : self.width]

    def split_matrix(self) -> Tensor | None:
        """M over [k; v; u], (3*J*D, 3*J*D); None where it was not watched."""
        return 0.5 * self.gradients.second_moment if self.split else None

    def first_matrix(self) -> Tensor | None:
        return None if self.of_first is None else 0.5 * self.of_first.second_moment


class ScoreMetric(ActivationMetric):
    """Queries' second moment for keys, the output projection's Gram matrix for values; summed over
    all modules that read these.

    The two have different units, so each is scaled to a total expected loss of one.
    """

    def __init__(self, parts: AttentionParts, sinks: int = 0) -> None:
        super().__init__(parts, sinks)
        self.parts = parts
        self.queries = [Moments(parts.num_attention_heads * parts.head_dim)]
        """Of the module's own queries, and of those of each reader."""
        self.queries += [Moments(parts.num_attention_heads * parts.head_dim) for _ in parts.readers]
        self.raw_keys = Moments(parts.key_width)
        self.used_keys = Moments(parts.key_width)
        self.longest = 1

    @contextmanager
    def observing(self) -> Iterator[None]:
        with ExitStack() as stack:
            for reader, moments in zip(self.parts.readers.values(), self.queries[1:], strict=True):
                see = partial(self._see_reader, reader, moments)
                stack.enter_context(inputs_of(reader.source, see))
            yield

    @torch.no_grad()
    def _see_reader(self, reader: ReaderParts, moments: Moments, x: Tensor) -> None:
        q, parts = reader.query.as_linear()(x), self.parts
        query, _ = split_query(
            q, parts.head_dim, reader.q_norm, parts.norm_spans_heads, gated=False
        )
        moments.add(query.transpose(1, 2).flatten(2))

    def see(self, x: Tensor, layer_idx: int, key_value: Tensor) -> None:
        parts = self.parts
        q = parts.query.as_linear()(x)
        if parts.adapters:
            q = q + parts.adapters[layer_idx][0](x)
        query, _ = split_query(
            q, parts.head_dim, parts.q_norm, parts.norm_spans_heads, gated=parts.gated
        )
        self.queries[0].add(query.transpose(1, 2).flatten(2))
        self.longest = max(self.longest, x.shape[1])
        keys = key_value[..., : parts.key_width]
        self.raw_keys.add(keys)
        if parts.k_norm is not None:
            heads = keys if parts.norm_spans_heads else keys.unflatten(-1, (-1, parts.head_dim))
            keys = parts.k_norm(heads).reshape(keys.shape)
        self.used_keys.add(keys * parts.key_multiplier)

    def matrix(self, covariance: Tensor) -> Tensor:
        width = self.parts.key_width
        key = _normalized(self._key_metric(), covariance[:width, :width])
        value = _normalized(self._value_metric(), covariance[width:, width:])
        return torch.block_diag(key, value)

    def _key_metric(self) -> Tensor:
        """Sum over all queries that read a head, those of readers as well, of E[(R_d q)(R_d q)^T],
        averaged over distances d, carried back through the key norm by its mean gain per channel.
        """
        parts, D = self.parts, self.parts.head_dim
        second = sum(moments.second_moment for moments in self.queries)
        blocks = []
        group = parts.num_attention_heads // parts.num_key_value_heads
        rotations = self._rotations()
        for head in range(parts.num_key_value_heads):
            total = torch.zeros(D, D, dtype=torch.float64)
            for h in range(head * group, (head + 1) * group):
                total += second[h * D : (h + 1) * D, h * D : (h + 1) * D]
            turned = rotations.transpose(1, 2) @ total @ rotations
            blocks.append(parts.scaling**2 * turned.mean(0))
        metric = torch.block_diag(*blocks)
        raw = self.raw_keys.second_moment.diagonal().clamp_min(1e-30)
        gain = (self.used_keys.second_moment.diagonal() / raw).sqrt()
        return gain[:, None] * metric * gain

    def _rotations(self) -> Tensor:
        """(distances, D, D): a query row times one of them is the query as seen from a key that
        lies this many tokens back."""
        parts, D = self.parts, self.parts.head_dim
        eye = torch.eye(D)
        if parts.rotary is None:
            return eye.double()[None]
        cos, sin = parts.rotary.angles(self.longest, eye)
        steps = torch.linspace(0, self.longest - 1, MAX_SCORE_DISTANCES).long().unique()
        rows = eye[None, None].expand(len(steps), 1, D, D)
        turned = [
            parts.rotary.rotate(rows[i : i + 1], cos[:, s : s + 1], sin[:, s : s + 1])[0, 0]
            for i, s in enumerate(steps.tolist())
        ]
        stacked = torch.stack(turned).double()
        return stacked @ stacked[0].T

    def _value_metric(self) -> Tensor:
        parts, D = self.parts, self.parts.head_dim
        outputs = [parts.output, *(reader.output for reader in parts.readers.values())]
        output = torch.cat(
            [weight_and_bias(x)[0].detach().to("cpu", torch.float64) for x in outputs]
        )
        if parts.output_norm is not None:  # but for the length that it divides by
            ones = output.new_ones(1, output.shape[1], dtype=torch.float32)
            gains = type(parts.output_norm).forward(parts.output_norm, ones)[0]
            output = output * gains.detach().to("cpu", torch.float64)
        group = parts.num_attention_heads // parts.num_key_value_heads
        blocks = []
        for head in range(parts.num_key_value_heads):
            columns = output[:, head * group * D : (head + 1) * group * D]
            per_query = columns.unflatten(1, (group, D))
            blocks.append(torch.einsum("egd,egc->dc", per_query, per_query))
        return torch.block_diag(*blocks)


def _normalized(metric: Tensor, covariance: Tensor) -> Tensor:
    return metric / torch.sum(metric * covariance).clamp_min(torch.finfo(torch.float64).tiny)


class Labels:
    """What the loss of calibration is of: each next token of the text, or one that the model draws.

    Args:
        source: one of `FISHER_LABELS`.
        seed: of the draws.
    """

    def __init__(self, source: str = "text", seed: int = 0) -> None:
        self.source = source
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def backward(self, logits: Tensor, ids: Tensor) -> None:
        """Carry the gradient of the summed cross-entropy of (1, T, V) and (1, T) back through the
        model. It overwrites the logits. The last token has no next one in the text.

        Raises:
            CalibrationError: logits that are not finite.
        """
        rows = logits.detach().flatten(0, 1)
        if self.source == "text":
            labels = nn.functional.pad(ids[0, 1:], (0, 1), value=IGNORED)
        else:
            # What is not finite is refused below, but would be no distribution to draw from.
            probabilities = torch.softmax(rows.float(), dim=-1).nan_to_num(0.5).cpu()
            labels = torch.multinomial(probabilities, 1, generator=self._generator).squeeze(1)
        if not math.isfinite(overwrite_with_gradient(rows, labels.to(rows.device))):
            raise CalibrationError(
                "the model's logits on the calibration text are not finite after its forward pass; "
                "check its weights, and run calibration in float32 or bfloat16"
            )
        logits.backward(rows.view_as(logits))


@contextmanager
def all_observing(metrics: list[ActivationMetric]) -> Iterator[None]:
    """Enter the hooks of all layers' metrics together."""
    with ExitStack() as stack:
        for metric in metrics:
            stack.enter_context(metric.observing())
        yield
