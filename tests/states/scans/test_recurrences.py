"""The three recurrences: chunks equal steps, last reads equal all reads, bases commute."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.states.scans.delta_rule import delta_scan, delta_step
from cacheshrink_hybrid.states.scans.selective import selective_scan, selective_step
from cacheshrink_hybrid.states.scans.ssd import CHUNK, ssd_scan, ssd_step
from tests.tolerances import SAME_COMPUTATION

B, M, G, P, N = 2, 4, 2, 6, 8
TOKENS = CHUNK + 11


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def ssd_inputs() -> tuple:
    x, dt = torch.randn(B, TOKENS, M, P), torch.rand(B, TOKENS, M)
    return (x, dt, torch.randn(B, TOKENS, G, N)), torch.randn(B, TOKENS, G, N)


def ssd(state, inputs, reads):
    x, dt, write = inputs
    return ssd_scan(state, x, dt, -torch.linspace(0.01, 1, M), write, reads)


def ssd_one(state, inputs, read):
    x, dt, write = inputs
    return ssd_step(state, x, dt, -torch.linspace(0.01, 1, M), write, read)


def delta_inputs() -> tuple:
    value, decay = torch.randn(B, TOKENS, M, P), -0.1 * torch.rand(B, TOKENS, M)
    beta = torch.rand(B, TOKENS, M)
    return (unit(B, TOKENS, G, N), value, decay, beta), unit(B, TOKENS, G, N)


def delta(state, inputs, reads):
    return delta_scan(state, *inputs, reads)


def delta_one(state, inputs, read):
    return delta_step(state, *inputs, read)


DECAYS = -torch.linspace(0.01, 1, M * P * N).view(M, P, N)


def selective_inputs() -> tuple:
    x, dt = torch.randn(B, TOKENS, M, P), torch.rand(B, TOKENS, M, P)
    return (x, dt, torch.randn(B, TOKENS, M, N)), torch.randn(B, TOKENS, M, N)


def selective(state, inputs, reads):
    x, dt, write = inputs
    return selective_scan(state, x, dt, DECAYS, write, reads)


def selective_one(state, inputs, read):
    x, dt, write = inputs
    return selective_step(state, x, dt, DECAYS, write, read)


CASES = {
    "mamba2": (ssd_inputs, ssd, ssd_one),
    "gated_delta_net": (delta_inputs, delta, delta_one),
    "mamba": (selective_inputs, selective, selective_one),
}
every_kind = pytest.mark.parametrize("kind", CASES)


@every_kind
def test_chunks_equal_steps(kind: str) -> None:
    make, scan, step = CASES[kind]
    inputs, reads = make()
    start = torch.randn(B, M, P, N)
    y, end = scan(start, inputs, reads)
    state, outputs = start, []
    for t in range(TOKENS):
        out, state = step(state, [x[:, t] for x in inputs], reads[:, t])
        outputs.append(out)
    torch.testing.assert_close(y, torch.stack(outputs, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(end, state, rtol=1e-4, atol=1e-4)


@every_kind
@pytest.mark.parametrize("num_reads", [0, 1, 5, TOKENS])
def test_only_the_last_tokens_are_read(kind: str, num_reads: int) -> None:
    make, scan, _ = CASES[kind]
    inputs, reads = make()
    full, end = scan(None, inputs, reads)
    y, same_end = scan(None, inputs, reads[:, TOKENS - num_reads :])
    assert y.shape == (B, num_reads, M, P)
    torch.testing.assert_close(y, full[:, TOKENS - num_reads :], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(same_end, end)


@every_kind
def test_no_state_is_a_state_of_zeros(kind: str) -> None:
    make, scan, _ = CASES[kind]
    inputs, reads = make()
    torch.testing.assert_close(
        scan(None, inputs, reads)[0], scan(torch.zeros(B, M, P, N), inputs, reads)[0]
    )


def test_a_random_basis_commutes_with_mamba2() -> None:
    """Full rank in any invertible basis computes the same output."""
    (x, dt, write), read = ssd_inputs()
    L = torch.randn(N, N, dtype=torch.float64) + 2 * torch.eye(N, dtype=torch.float64)
    R = torch.linalg.inv(L).T
    expected, _ = ssd(None, (x, dt, write), read)
    actual, _ = ssd(None, (x, dt, write @ L.float()), read @ R.float())
    error = (actual - expected).abs().max() / expected.abs().mean()
    assert float(error) < 10 * SAME_COMPUTATION


def test_projected_keys_lose_nothing_if_they_span_the_keys() -> None:
    """Keys in a 3-dimensional subspace: 3 orthonormal directions are exact for any query."""
    (_, value, decay, beta), query = delta_inputs()
    basis, _ = torch.linalg.qr(torch.randn(N, 3))
    key = unit(B, TOKENS, G, 3) @ basis.T
    expected, _ = delta(None, (key, value, decay, beta), query)
    actual, _ = delta(None, (key @ basis, value, decay, beta), query @ basis)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
