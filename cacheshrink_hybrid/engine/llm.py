"""The engine: requests in, tokens out, continuously batched over one pool.

    llm = LLM(model, tokenizer, cache_memory="2GiB")
    outputs = llm.generate(["Once upon a time", "The"], SamplingParams(max_tokens=32))

What runs when is decided in `scheduler`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..cache.budget import budget_bytes
from ..errors import CacheFullError, ConfigError, SequenceError
from ..kernels.backend import Backend, check_backend
from ..placement import input_device
from .request import Request, RequestOutput
from .runner import Runner
from .sampling import SamplingParams, choose_token
from .scheduler import EngineStatistics, Scheduler

MAX_BATCH = 256
PREFILL_CHUNK = 512


class LLM:
    """A model that serves many requests at once.

    Args:
        model: converted or not, in evaluation mode.
        tokenizer: for prompts and outputs as text; without it prompts are token ids.
        cache_memory: budget of the pool: bytes, text such as "2GiB", or a fraction of the free
            memory.
        max_batch: most requests that run at once.
        prefill_chunk: most tokens of a prompt per step. Models that cannot continue a prompt in
            pieces get it whole.
        backend: `triton` decodes by kernels or refuses, `torch` never does, `auto` takes kernels
            on a CUDA device for the layers that they can read (`llm.runner.coverage` tells which,
            and why not the others). None for the model's `kernel_backend`. Of a prompt, kernels
            read what earlier chunks left in the pool; recurrent states scan it in torch.
        cuda_graphs: record decode steps and replay them. None where it is possible: on a CUDA
            device, if all layers run as kernels.

    Raises:
        ConfigError: a setting that makes no sense, or more memory than there is.
        CacheFullError: memory for less than one sequence; says how much is needed.
        NotSupportedError: the model keeps something that the pool cannot, or `cuda_graphs` asks
            for what it cannot have.
        KernelUnavailableError: `backend` is `triton`, which cannot run here, or leaves layers out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        cache_memory: int | float | str = "2GiB",
        max_batch: int = MAX_BATCH,
        prefill_chunk: int = PREFILL_CHUNK,
        backend: Backend | None = None,
        cuda_graphs: bool | None = None,
    ) -> None:
        if max_batch < 1 or prefill_chunk < 1:
            raise ConfigError(
                f"max_batch={max_batch} and prefill_chunk={prefill_chunk} must be at least 1"
            )
        model.eval()
        chosen: Any = backend or getattr(model, "kernel_backend", "auto")
        self.runner = Runner(
            model,
            budget_bytes(cache_memory, input_device(model)),
            backend=check_backend(chosen),
            max_batch=max_batch,
            cuda_graphs=cuda_graphs,
        )
        self.store = self.runner.store
        self.tokenizer = tokenizer
        self._scheduler = Scheduler(self.runner, max_batch=max_batch, prefill_chunk=prefill_chunk)
        self.max_length = getattr(self.runner.config, "max_position_embeddings", None)
        self._eos = _end_tokens(model)
        self._silent = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self._numbers = count()

    # Requests

    def add_request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        request_id: Hashable | None = None,
    ) -> Hashable:
        """Queue a request; returns its id, which is made up unless given.

        Raises:
            ConfigError: an empty prompt, one beyond the model's positions, unknown tokens, or a
                text without a tokenizer.
            CacheFullError: the request would not fit even alone.
            SequenceError: the id is in use.
        """
        params = params or SamplingParams()
        ids = self._token_ids(prompt)
        if params.stop and self.tokenizer is None:
            raise ConfigError("stop strings need the tokenizer; give it to LLM")
        longest = len(ids) + params.max_tokens
        if self.max_length is not None:
            if len(ids) >= self.max_length:
                raise ConfigError(
                    f"the prompt has {len(ids)} tokens, and the model has positions for "
                    f"{self.max_length}, prompt and output together; shorten it"
                )
            longest = min(longest, self.max_length)
        needed, total = self.store.need(longest), self.store.pool.num_frames
        if needed > total:
            frame_bytes = self.store.layout.frame_bytes
            raise CacheFullError(
                f"a request of {longest} tokens needs {needed * frame_bytes} bytes, and the pool "
                f"has {total * frame_bytes}; give LLM cache_memory of at least "
                f"{(needed + 1) * frame_bytes} bytes, or ask for fewer tokens"
            )
        if request_id is None:
            taken = {request.request_id for request in self._scheduler.requests}
            request_id = next(number for number in self._numbers if number not in taken)
        elif any(request.request_id == request_id for request in self._scheduler.requests):
            raise SequenceError(f"request id {request_id!r} is in use; choose another")
        generator = None
        if params.temperature > 0:
            generator = torch.Generator().manual_seed(params.seed)
        self._scheduler.add(Request(request_id, ids, params, generator, tokens=list(ids)))
        return request_id

    def abort(self, request_id: Hashable) -> RequestOutput:
        """Stop a request, wherever it is, and give its frames back.

        Raises:
            SequenceError: no such request is waiting or running.
        """
        for request in self._scheduler.requests:
            if request.request_id == request_id:
                request.finish_reason = "abort"
                self._scheduler.leave(request)
                return self._output(request, 0)
        raise SequenceError(
            f"request {request_id!r} is neither waiting nor running; it may have finished"
        )

    @property
    def has_requests(self) -> bool:
        return bool(self._scheduler.requests)

    @property
    def statistics(self) -> EngineStatistics:
        return self._scheduler.statistics

    # Work

    def step(self) -> list[RequestOutput]:
        """Feed one token of each running sequence, then up to `prefill_chunk` tokens of prompts.
        Returns the requests that got a token."""
        return self._scheduler.step(self._take_token)

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Serve all prompts and return their outputs in order. If one of them is refused, none is
        served.

        Args:
            params: of all prompts, or one for each.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        given: list[Any] = [prompts] if single else list(prompts)
        wishes = (
            list(params)
            if isinstance(params, Sequence)
            else [params or SamplingParams()] * len(given)
        )
        if len(wishes) != len(given):
            raise ConfigError(f"{len(wishes)} params for {len(given)} prompts; give one for each")
        ids: list[Hashable] = []
        try:
            for prompt, wish in zip(given, wishes, strict=True):
                ids.append(self.add_request(prompt, wish))
        except Exception:
            for request_id in ids:
                self.abort(request_id)
            raise
        done: dict[Hashable, RequestOutput] = {}
        with tqdm(total=len(ids), disable=not progress, unit="request") as bar:
            while len(done) < len(ids):
                for output in self.step():
                    if output.finished and output.request_id in ids:
                        done[output.request_id] = output
                        bar.update()
        return [done[request_id] for request_id in ids]

    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Serve one prompt, with an output for every token; others go on beside it. Closing the
        iterator aborts the request."""
        request_id = self.add_request(prompt, params)
        try:
            while True:
                for output in self.step():
                    if output.request_id == request_id:
                        yield output
                        if output.finished:
                            return
        finally:
            if any(request.request_id == request_id for request in self._scheduler.requests):
                self.abort(request_id)

    # Inside

    def _token_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ConfigError("a prompt of text needs the tokenizer; give it to LLM")
            ids = tuple(self.tokenizer(prompt).input_ids)
        else:
            ids = tuple(int(token) for token in prompt)
        if not ids:
            raise ConfigError("the prompt is empty; give it at least one token")
        vocabulary = self.runner.config.vocab_size
        unknown = [token for token in ids if not 0 <= token < vocabulary]
        if unknown:
            raise ConfigError(f"tokens {unknown[:4]} lie outside the vocabulary of {vocabulary}")
        return ids

    def _take_token(self, request: Request, logits: Tensor) -> RequestOutput:
        params = request.params
        token = choose_token(logits, params, request.generator)
        request.tokens.append(token)
        if (params.stop and request.find_stop(self._text_of, self._silent)) or (
            token in self._eos and not params.ignore_eos
        ):
            request.finish_reason = "stop"
        elif len(request.generated) >= params.max_tokens or len(request.tokens) == self.max_length:
            request.finish_reason = "length"
        if request.finish_reason is not None:
            self._scheduler.leave(request)
        return self._output(request, 1)

    def _output(self, request: Request, num_new: int) -> RequestOutput:
        return request.output(num_new, None if self.tokenizer is None else self._text_of)

    def _text_of(self, tokens: Sequence[int]) -> str:
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    config: Any = getattr(model, "generation_config", None) or model.config
    tokens = config.eos_token_id
    if tokens is None:
        return frozenset()
    return frozenset(tokens if isinstance(tokens, (list, tuple)) else [int(tokens)])
