"""Kernels run on a GPU where there is one, and in Triton's interpreter otherwise."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
