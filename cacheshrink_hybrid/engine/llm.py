"""The engine: requests in, tokens out, continuously batched over one pool.

    llm = LLM(model, tokenizer, cache_memory="2GiB")
    outputs = llm.generate(["Once upon a time", "The"], SamplingParams(max_tokens=32))

What runs when is decided in `scheduler`, who makes a step and gets which outputs in `dispatcher`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, NotSupportedError
from ..integers import check_counts
from ..kernels.backend import Backend, check_backend
from ..placement import input_device
from ..pool.budget import budget_bytes
from ..pool.prefixes.placement import placement_of
from .dispatcher import Dispatcher
from .intake import Intake
from .named_model import load_named
from .outbox import Outbox
from .prefix_files import load_prefixes
from .prefix_reuse import PrefixReuse
from .prefix_settings import PrefixSettings
from .prefix_tiers import add_tiers
from .prompts import PromptEncoder, single_prompt, split_prompts
from .request import Request, RequestOutput
from .runner import Runner
from .sampling_params import SamplingParams
from .scheduler import Scheduler
from .speculation import SpeculativeConfig
from .statistics import EngineStatistics
from .stream import Stream

MAX_BATCH = 256
PREFILL_CHUNK = 512


class LLM:
    """A model that serves many requests at once.

    Any number of threads may call it. Whoever makes a step makes it for all requests; each caller
    gets the outputs of its own.

    A prompt is text, token ids (a list, tuple, array or tensor), or what a tokenizer returned,
    whose padding is left out. Text gets the special tokens that the tokenizer adds, but no second
    beginning-of-sequence token if it begins with one.

    Args:
        model: converted or not; or a directory or name on the Hub, to load on the CPU, which brings
            its tokenizer.
        tokenizer: for prompts and outputs as text; without it prompts are token ids.
        cache_memory: budget of the pool: bytes, text such as "2GiB", or a fraction of the free
            memory.
        max_batch: most requests that run at once.
        prefill_chunk: most tokens of a prompt per step. Models that cannot continue a prompt in
            pieces get it whole.
        backend: `triton` and `cpu` decode by their kernels or refuse, `torch` never does, `auto`
            takes those of the device for the layers that they can read (`LLM.runner.coverage` tells
            which, and why not the others). None for the model's `kernel_backend`. Of a prompt,
            those of a GPU read what earlier chunks left in the pool; recurrent states scan it in
            torch.
        cuda_graphs: record decode steps and replay them. None where it is possible: on a CUDA
            device, if all layers run as kernels.
        prefix_cache: requests that begin like others, now or before, take over what these have in
            the pool, which keeps it as long as no running request needs the room. The outputs are
            those of a prompt that is prefilled in other pieces, but for what `prefix_state_dtype`
            rounds. `LLM.statistics` counts them.
        speculative_config: drafts of next tokens by look-up, a `SpeculativeConfig` or a mapping of
            its names, such as `{"num_speculative_tokens": 5, "prompt_lookup_max": 4}`; None for
            none. It changes how soon tokens come, not which: they are those of a model that reads
            several at once. `LLM.statistics` counts them.
        settings: how prefixes are kept: those of `PrefixSettings` (`engine.prefix_settings`).

    Raises:
        ConfigError: a setting that makes no sense or is unknown, or more memory than there is.
        CacheFullError: memory for less than one sequence; says how much is needed.
        NotSupportedError: the model keeps something that the pool cannot, or `cuda_graphs` or
            `speculative_config` ask for what it cannot have.
        CheckpointError: `prefixes` are damaged, or of another model.
        KernelUnavailableError: `backend` is `triton` or `cpu`, which cannot run here, or leaves
            layers out.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        cache_memory: int | float | str = "2GiB",
        max_batch: int = MAX_BATCH,
        prefill_chunk: int = PREFILL_CHUNK,
        backend: Backend | None = None,
        cuda_graphs: bool | None = None,
        prefix_cache: bool = True,
        speculative_config: SpeculativeConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        check_counts(max_batch=max_batch, prefill_chunk=prefill_chunk)
        kept = PrefixSettings.of(settings)
        speculation = None
        if speculative_config is not None:
            speculation = SpeculativeConfig.of(speculative_config)
        if isinstance(model, (str, Path)):
            model, own = load_named(model)
            tokenizer = own if tokenizer is None else tokenizer
        elif not isinstance(model, nn.Module):
            raise ConfigError(
                f"a {type(model).__name__} is no model; give a model, a directory, or a name on "
                "the Hub"
            )
        model.eval()
        chosen: Any = backend or getattr(model, "kernel_backend", "auto")
        self.runner = Runner(
            model,
            budget_bytes(cache_memory, input_device(model)),
            backend=check_backend(chosen),
            max_batch=max_batch,
            cuda_graphs=cuda_graphs,
            eviction=kept.prefix_eviction,
            prefix_state_dtype=kept.prefix_state_dtype,
        )
        if speculation is not None and not self.runner.continues_in_pieces:
            raise NotSupportedError(
                f"speculative_config does not go with {self.runner.config.model_type}, whose "
                "recurrent layers take several tokens at the beginning of a text only; leave it out"
            )
        self.store = self.runner.store
        self.tokenizer = tokenizer
        placement = placement_of(kept.prefix_placement)
        reuses = prefix_cache and placement.keeps_rows
        kept.check_used(reuses)
        add_tiers(
            self.store,
            model,
            kept.prefix_eviction,
            host_memory=kept.prefix_host_memory,
            disk=kept.prefix_disk,
            disk_memory=kept.prefix_disk_memory,
        )
        if kept.prefixes is not None:
            load_prefixes(kept.prefixes, self.store, model)
        self._scheduler = Scheduler(
            self.runner,
            max_batch=max_batch,
            prefill_chunk=prefill_chunk,
            reuse=PrefixReuse(self.runner, placement) if reuses else None,
            speculation=speculation,
        )
        self._loose = Outbox()
        """Of requests that `add_request` took."""
        self._dispatcher = Dispatcher(self._scheduler, self._loose)
        self._intake = Intake(self.runner, tokenizer, speculation)

    # Requests

    def add_request(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        request_id: Hashable | None = None,
    ) -> Hashable:
        """Queue a request, whose outputs `step` returns; returns its id, made up unless given. All
        `n` continuations have it.

        Raises:
            ConfigError: an empty prompt, one beyond the model's positions, unknown tokens, a text
                without a tokenizer, or something that is no prompt.
            CacheFullError: the request would not fit even alone.
            SequenceError: the id is in use.
        """
        if not isinstance(request_id, Hashable):
            raise ConfigError(f"request_id={request_id!r} must be hashable, such as text")
        requests = self._intake.requests(single_prompt(prompt), params, self._loose, request_id)
        self._dispatcher.submit(requests)
        return requests[0].request_id

    def abort(self, request_id: Hashable) -> RequestOutput:
        """Stop a request with all its continuations, wherever they are, and give the frames back. A
        stream or a `generate` that waits for them gets their outputs. `step` returns those of
        other continuations than the one returned here, the first.

        Raises:
            SequenceError: no such request is waiting or running.
        """
        return self._dispatcher.abort(request_id)

    def reset_prefix_cache(self) -> None:
        """Forget all prefixes. A change of the model is noticed; see `ModelStamp` for which may
        not be."""
        self._dispatcher.forget_prefixes()

    @property
    def encoder(self) -> PromptEncoder:
        """Of texts and conversations to token ids.

        Raises:
            ConfigError: there is no tokenizer.
        """
        if self._intake.encoder is None:
            raise ConfigError("a chat needs the tokenizer; give it to LLM")
        return self._intake.encoder

    @property
    def max_length(self) -> int | None:
        """Positions that the model has; None for any number."""
        return self._intake.max_length

    @property
    def max_model_len(self) -> int | None:
        """Most tokens of one sequence, prompt and output together: the least of the model's
        positions and of what fits into the pool; None for any number."""
        return self._intake.max_model_len

    @property
    def requests(self) -> list[Request]:
        """What runs and waits, those that run first. To be looked at between steps."""
        return self._scheduler.requests

    @property
    def has_requests(self) -> bool:
        """Whether `step` has more to return, of requests that `add_request` took."""
        return self._loose.num_open > 0 or bool(self._loose)

    @property
    def statistics(self) -> EngineStatistics:
        return self._scheduler.statistics

    # Work

    def step(self) -> list[RequestOutput]:
        """Feed one token of each running sequence, then up to `prefill_chunk` tokens of prompts.

        Returns:
            What is new of the requests that `add_request` took, one output for each that has got
            tokens or has ended since the last call, also in steps that others made.

        Raises:
            Exception: the model's or the tokenizer's. Outputs of other requests stay for the next
                call; after an error of a whole step all requests wait to be computed anew.
        """
        return self._dispatcher.step(self._loose)

    def generate(
        self,
        prompts: Any,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Serve all prompts and return their outputs in order, `n` for each. If one of them is
        refused, none is served; an error or an interrupt ends all of them, and no others.

        Args:
            prompts: one, or several: a list of prompts, rows of an array or tensor, or a batch that
                a tokenizer returned.
            params: of all prompts, or one for each.
        """
        given = split_prompts(prompts)
        wishes = list(params) if isinstance(params, Sequence) else [params] * len(given)
        if len(wishes) != len(given):
            raise ConfigError(f"{len(wishes)} params for {len(given)} prompts; give one for each")
        outbox = Outbox(only_finished=True)
        requests = [
            request
            for prompt, wish in zip(given, wishes, strict=True)
            for request in self._intake.requests(prompt, wish, outbox)
        ]
        done: dict[tuple[Hashable, int], RequestOutput] = {}
        try:
            self._dispatcher.submit(requests)
            with tqdm(total=len(requests), disable=not progress, unit="request") as bar:
                while len(done) < len(requests):
                    outputs = self._dispatcher.wait(outbox)
                    done |= {(output.request_id, output.index): output for output in outputs}
                    bar.update(len(outputs))
        except BaseException:
            self._dispatcher.drop(requests)
            raise
        return [done[request.request_id, request.index] for request in requests]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        **template: Any,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, in the tokenizer's chat template.

        Args:
            messages: a list of messages with `role` and `content`, or a list of such lists.
            template: passed to `apply_chat_template`, such as `tools`; `add_generation_prompt` is
                True unless given.

        Raises:
            ConfigError: no tokenizer, or one without a chat template; and what `generate` raises.
        """
        single = len(messages) > 0 and isinstance(messages[0], Mapping)
        conversations: Any = [messages] if single else messages
        prompts = [self.encoder.chat(one, **template) for one in conversations]
        return self.generate(prompts, params, progress=progress)

    def stream(self, prompt: Any, params: SamplingParams | None = None) -> Stream:
        """Queue one prompt; an iterator over its outputs, one for every token of each continuation.
        Others go on beside it. Closing the iterator aborts the request, and so does losing it."""
        outbox = Outbox(every_token=True)
        requests = self._intake.requests(single_prompt(prompt), params, outbox)
        return Stream(self._dispatcher, requests, outbox)
