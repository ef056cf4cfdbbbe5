"""From channels of a latent to keys or to values of all heads, whatever module computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...headwise_linear import headwise_linear, in_runs
from ...linear_map import images, is_linear, is_plain


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class HeadMap:
    """An affine map from channels (..., channels) to all heads (..., J*D).

    Attributes:
        name: of the projection in its module.
        projection: what computes it: a linear layer, or whatever stands in the place of one
            (an adapter around it, a quantized or offloaded weight, a hook).
        num_heads, head_dim: J and D.
        num_channels: that the projection takes.
        shares: where heads have channels of their own, those of one head in each run of the input
            (`headwise_linear.by_head`); None where all heads read all channels.
    """

    name: str
    projection: nn.Module
    num_heads: int
    head_dim: int
    num_channels: int
    shares: tuple[int, ...] | None = None

    def __call__(self, channels: Tensor) -> Tensor:
        return self.projection(channels)

    @property
    def is_plain(self) -> bool:
        """Whether the projection computes what its weight and bias say."""
        return is_plain(self.projection)

    def is_matrix(self, like: Tensor) -> bool:
        """Whether it is one affine map for all tokens and sequences; for `like` see `matrix`."""
        return self.is_plain or is_linear(self.projection, self._units(like))

    def matrix(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The map as it is now: a weight (J, D, channels) and a bias (J*D,); where heads have
        channels of their own, the weight is (J, D, channels / J).

        Args:
            like: a tensor of the channels' type and device.
        """
        heads = self.num_heads, self.head_dim
        if self.is_plain:
            return self.projection.weight.view(*heads, -1), self.projection.bias
        columns, bias = images(self.projection, self._units(like))
        return columns.T.reshape(*heads, -1), bias

    def parameters(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """`matrix`, in any shape, which costs nothing where the projection is plain."""
        if self.is_plain:
            return self.projection.weight, self.projection.bias
        return self.matrix(like)

    def offset(self, like: Tensor) -> Tensor:
        """What it gives for channels of zeros, (J*D,); for `like` see `matrix`."""
        if self.is_plain:
            return self.projection.bias
        return self.projection(like.new_zeros(1, 1, self.num_channels))[0, 0]

    def in_order(self, channels: Tensor, order: Tensor) -> Tensor:
        """What a plain projection gives, (..., J, D), with its outputs in another order.

        Args:
            channels: (..., channels).
            order: of the outputs, (J*D,).
        """
        weight, heads = self.projection.weight, (self.num_heads, self.head_dim)
        bias = self.projection.bias.index_select(0, order)
        if self.shares is None:
            outputs = nn.functional.linear(channels, weight.index_select(0, order), bias)
        else:
            rows = weight.flatten(0, 1).index_select(0, order).view_as(weight)
            outputs = headwise_linear(channels, rows, bias, self.shares)
        return outputs.unflatten(-1, heads)

    def _units(self, like: Tensor) -> Tensor:
        """Inputs whose images are the columns of the weight."""
        place = {"dtype": like.dtype, "device": like.device}
        if self.shares is None:
            return torch.eye(self.num_channels, **place)
        own = torch.eye(sum(self.shares), **place)
        return in_runs(own[:, None].expand(-1, self.num_heads, -1), self.shares)
