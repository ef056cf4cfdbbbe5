"""What each route answers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial

from fastapi import Request
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)

from ..engine import AsyncLLM, RequestOutput, SamplingParams
from ..engine.prompts import Ids
from ..engine.token_bytes import TokenBytes
from ..errors import ConfigError
from .admission import admitted
from .answer_formats import THINK, answer_parts
from .answer_reader import AnswerReader, ForcedReader, PartsReader, PlainReader
from .answers import ChatWriter, CompletionWriter, Json, Writer
from .faults import Fault, fault_of
from .journal import note
from .metrics import Counts, engine_lines
from .outputs import finished_outputs, outputs_as_they_come, while_connected
from .picture import page, picture
from .prompt_logprobs import add_prompt_logprobs
from .prompts import chat_prompt, completion_prompts, prompt_ids, prompt_text
from .schema import ChatRequest, CompletionRequest, SamplingFields
from .tool_choice import forced_name, is_forced, offered_tools
from .wishes import chat_params, completion_params, is_echo_alone

DONE = "data: [DONE]\n\n"
"""How streams end."""
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Routes:
    """The routes over one engine.

    Args:
        engine: whose model has a tokenizer.
        model: the served name.
        answer_seconds: that an answer may take.
        answer_format: of chats, a name in `answer_formats`.
        counts: of the server.
    """

    def __init__(
        self,
        engine: AsyncLLM,
        *,
        model: str,
        answer_seconds: float,
        answer_format: str,
        counts: Counts,
    ) -> None:
        if engine.llm.tokenizer is None:
            raise ConfigError("a server needs the model's tokenizer; save the model with one")
        self.engine = engine
        self.model = model
        self.tokenizer = engine.llm.tokenizer
        self._seconds = answer_seconds
        self._counts = counts
        self._token_bytes = TokenBytes(self.tokenizer)
        self._parts = answer_parts(self.tokenizer, answer_format)
        self._created = int(time.time())

    async def health(self) -> Response:
        if self.engine.closed:
            return Fault(503, "the engine is closed", "stopping").response()
        return JSONResponse({"status": "ok"})

    async def metrics(self) -> Response:
        lines = [*self._counts.lines()]
        lines += await self.engine.between_steps(lambda: engine_lines(self.engine.llm))
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def page(self) -> Response:
        return HTMLResponse(page())

    async def pool(self) -> Json:
        return await self.engine.between_steps(lambda: picture(self.engine.llm, self.model))

    async def models(self) -> Json:
        return {"object": "list", "data": [self._model()]}

    async def one_model(self, name: str) -> Json:
        self._check_model(name)
        return self._model()

    async def completions(self, request: Request, sent: CompletionRequest) -> Response:
        self._check_model(sent.model)
        params, prompts = completion_params(sent), completion_prompts(sent)
        ids = await self.engine.read(prompt_ids, self.engine.llm.encoder, prompts)
        echoes: list[str] = []
        if sent.echo:
            texts = [prompt_text(self.tokenizer, prompt) for prompt in prompts]
            echoes = [text for text in texts for _ in range(params.n)]
        writer = CompletionWriter(
            self.model, self._token_bytes, echoes, echo_alone=is_echo_alone(sent)
        )
        return await self._answer(request, sent, writer, ids, params)

    async def chat(self, request: Request, sent: ChatRequest) -> Response:
        self._check_model(sent.model)
        params = chat_params(sent, self._parts)
        encoder = self.engine.llm.encoder
        prompt = await self.engine.read(chat_prompt, encoder, sent)
        most_calls = 1 if sent.parallel_tool_calls is False else None
        writer = ChatWriter(
            self.model, self._token_bytes, self._reader_maker(sent, prompt), most_calls
        )
        return await self._answer(request, sent, writer, [prompt], params)

    # Inside

    def _model(self) -> Json:
        return {
            "id": self.model,
            "object": "model",
            "created": self._created,
            "owned_by": "cacheshrink_hybrid",
            "max_model_len": self.engine.llm.max_model_len,
        }

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.model):
            raise Fault(
                404,
                f"model {name!r:.100} is not served here; {self.model!r} is",
                "model_not_found",
                "model",
            )

    def _reader_maker(self, sent: ChatRequest, prompt: Ids) -> Callable[[], AnswerReader]:
        """What makes a reader for each answer to a chat."""
        if is_forced(sent):
            return partial(ForcedReader, forced_name(sent))
        tools = offered_tools(sent)
        described = self._parts.described(calls=bool(tools))
        if described is None:
            return PlainReader
        text = str(self.tokenizer.decode(list(prompt)))
        if not self._parts.own:  # marks the beginning of the answer alone
            text = THINK if text.rstrip().endswith(THINK) else ""
        return partial(PartsReader, described, text, tools)

    async def _answer(
        self,
        request: Request,
        sent: SamplingFields,
        writer: Writer,
        prompts: Sequence[Ids],
        params: SamplingParams,
    ) -> Response:
        asked = admitted(self.engine, sent, prompts, params)
        work = (self.engine, asked, self._seconds)
        if sent.stream:
            usage = sent.stream_options is not None and bool(sent.stream_options.include_usage)
            events = self._events(request, writer, outputs_as_they_come(*work), usage=usage)
            first = await while_connected(request, anext(events))
            return StreamingResponse(
                _resumed(first, events), media_type="text/event-stream", headers=STREAM_HEADERS
            )
        outputs = await while_connected(request, finished_outputs(*work))
        for output in outputs:
            writer.count(output)
        _note_usage(request, writer)
        choices = [writer.choice(number, output) for number, output in enumerate(outputs)]
        answer = writer.whole(choices)
        if sent.prompt_logprobs is not None:
            in_choices = isinstance(sent, CompletionRequest)
            add_prompt_logprobs(answer, outputs, self._token_bytes, of_choices=in_choices)
        return JSONResponse(answer)

    async def _events(
        self,
        request: Request,
        writer: Writer,
        outputs: AsyncGenerator[tuple[int, RequestOutput], None],
        *,
        usage: bool,
    ) -> AsyncGenerator[str, None]:
        """A stream's events. What goes wrong before the first one is raised; after that it is an
        event as well."""
        last: dict[int, float] = {}
        no_usage: Json = {"usage": None} if usage else {}
        began = time.perf_counter()
        try:
            async with aclosing(outputs):
                async for number, output in outputs:
                    now = time.perf_counter()
                    if number in last:
                        self._counts.between_tokens.add(now - last[number])
                    else:
                        self._counts.first_token.add(now - began)
                    chunks = writer.chunks(number, output, first=number not in last)
                    last[number] = now
                    writer.count(output)
                    for chunk in chunks:
                        yield _event(chunk | no_usage)
            if usage:
                yield _event(writer.last_chunk())
            yield DONE
        except Exception as error:  # the client gets it
            fault = fault_of(error)
            if not last:
                raise
            if fault.status == 500:
                note("internal error", level=logging.ERROR, error=error, id=writer.id)
            yield _event(fault.json())
        finally:
            _note_usage(request, writer)


def _note_usage(request: Request, writer: Writer) -> None:
    """For the line of the request in the log."""
    usage = writer.usage
    request.state.notes.update(
        id=writer.id,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _event(content: Json) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _resumed(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event
