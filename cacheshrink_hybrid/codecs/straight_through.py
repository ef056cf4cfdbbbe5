"""Values of coded latents with the gradient of the latents themselves."""

from __future__ import annotations

from torch import Tensor


def straight_through(latent: Tensor, decoded: Tensor) -> Tensor:
    """`decoded` forward, the identity on `latent` backward (straight-through estimator).

    Args:
        latent: as the encoder gives it, (..., R).
        decoded: the same after it was coded and decoded, (..., R).

    Reference: Bengio, Leonard, Courville, arXiv 1308.3432.
    """
    return latent + (decoded - latent).detach()
