"""llama.cpp, by its Python package: keys and values in its types of blocks, rotated by itself.

It reads the model's GGUF file, whose weights are coded, so it is compared with its own cache of
16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .method import Held, Method, Reading, Subject

PACKAGE = "llama-cpp-python==0.3.36"
TYPES = {"f16": 1, "q8_0": 8, "q5_1": 7, "q4_0": 2}
"""Numbers of ggml's types."""
BASE = "llama.cpp f16"
BOOKKEEPING_BYTES = 12
"""Of each token's place in a saved state, beside its keys and values."""


class LlamaReading:
    """A context that reads from its start."""

    def __init__(self, llama: Any) -> None:
        self.llama = llama
        llama.reset()

    def feed(self, ids: Tensor) -> Tensor:
        begin = self.llama.n_tokens
        self.llama.eval(ids.tolist())
        return torch.from_numpy(self.llama.scores[begin : self.llama.n_tokens].copy())

    def held(self) -> Held:
        from llama_cpp import llama_state_seq_get_size

        # What the sequence would be saved as: its rows, and some hundred bytes of headers.
        size = int(llama_state_seq_get_size(self.llama.ctx, 0))
        size -= self.llama.n_tokens * BOOKKEEPING_BYTES
        return Held(here=size, at_16bit=size)


def _start(type_name: str, subject: Subject) -> Callable[[], Reading]:
    from llama_cpp import Llama

    kind = TYPES[type_name]
    llama = Llama(
        str(subject.gguf),
        n_ctx=subject.window_length,
        n_batch=subject.window_length,
        n_threads=subject.threads,
        n_threads_batch=subject.threads,
        type_k=kind,
        type_v=kind,
        flash_attn=True,  # without it coded values are refused
        logits_all=True,
        verbose=False,
    )
    return lambda: LlamaReading(llama)


def methods() -> Iterator[Method]:
    for name in TYPES:
        yield Method(
            name=f"llama.cpp {name}",
            family="llama.cpp",
            convention="read",
            start=partial(_start, name),
            package=PACKAGE,
            base=BASE,
        )
