"""Settings of every test: offline, one thread, and torch's deterministic mode, which fills
uninitialised memory with NaN, so that a row that nobody wrote fails loudly.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator

import pytest
import torch

# Triton chooses its interpreter when it is first imported, which other tests may do before those
# of the kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import transformers


@pytest.fixture(scope="session", autouse=True)
def deterministic_and_quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
