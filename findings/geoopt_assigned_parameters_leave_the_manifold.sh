#!/usr/bin/env bash
# geoopt 0.5.1: load_state_dict(assign=True) turns a ManifoldParameter into a plain Parameter.
#
# The optimizer then takes ordinary steps, and the weight leaves the manifold; nothing is said.
# transformers' from_pretrained assigns as well. Copying, load_state_dict's default, keeps it.
# Seen: type Parameter after assign=True, and W^T W off the identity by 1e-2 after three steps of
# RiemannianAdam; after a copy 2e-7.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 geoopt==0.5.1
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import geoopt
import torch


def off(weight):
    """Largest element of W^T W - I."""
    weight = weight.detach().double()
    return float((weight.T @ weight - torch.eye(weight.shape[1], dtype=weight.dtype)).abs().max())


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        manifold = geoopt.EuclideanStiefel()
        self.weight = geoopt.ManifoldParameter(manifold.random(8, 3), manifold=manifold)

    def forward(self, x):
        return x @ self.weight


torch.manual_seed(0)
saved = Net().state_dict()
distances = {}
for assign in (False, True):
    net = Net()
    net.load_state_dict(saved, assign=assign)
    optimizer = geoopt.optim.RiemannianAdam(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (net(torch.ones(2, 8)) ** 2).sum().backward()
        optimizer.step()
    distances[assign] = off(net.weight)
    print(f"assign={assign}: {type(net.weight).__name__}, off by {distances[assign]:.1e}")
assert distances[False] < 1e-5 and distances[True] > 1e-3, "changed"
PYTHON
