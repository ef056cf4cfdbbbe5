"""The program `serve`: OpenAI's routes over a model."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch

from ..byte_counts import parse_bytes
from ..conversion.convert import convert_to_mla
from ..engine import LLM, AsyncLLM
from ..engine.warm_up import warm_up
from ..errors import ConfigError
from ..model.attached_plan import is_converted, plan_of
from ..serving.answer_formats import answer_parts
from ..serving.app import ServerSettings, make_app
from ..serving.journal import note, start_journal
from ..serving.progress import told
from ..serving.server import Server, listening_socket
from .arguments import load_given
from .parsers.serve import KEY_VARIABLE


def run(given: argparse.Namespace) -> int:
    start_journal()
    socket = listening_socket(given.host, given.port)
    began = time.perf_counter()
    name = given.name or Path(given.model).name
    model, tokenizer = _model(given)
    if tokenizer is None:
        raise ConfigError(
            f"{given.model} has no tokenizer, and a server needs one; save it with one"
        )
    if given.chat_template is not None:
        tokenizer.chat_template = given.chat_template.read_text(encoding="utf-8")
    drafts = given.speculative_config
    drafts = None if drafts is None else json.loads(drafts)
    llm = LLM(
        model,
        tokenizer,
        cache_memory=given.cache_memory,
        max_batch=given.max_batch,
        prefill_chunk=given.prefill_chunk,
        backend=given.backend,
        prefix_host_memory=given.prefix_host_memory,
        prefix_disk=given.prefix_disk,
        prefix_disk_memory=given.prefix_disk_memory,
        speculative_config=drafts,
    )
    with told("warming up", model=name):  # compilation may take minutes, the first time
        warm_up(llm, backend=given.backend, speculative_config=drafts)
    limit = given.max_open_memory
    engine = AsyncLLM(
        llm,
        max_open=given.max_open,
        max_open_bytes=None if limit is None else parse_bytes(limit),
    )
    settings = ServerSettings(
        model=name,
        api_keys=_keys(given),
        max_body_bytes=parse_bytes(given.max_body),
        body_seconds=given.body_seconds,
        answer_seconds=given.answer_seconds,
        answer_format=given.answer_format,
        allowed_origins=tuple(given.allow_origin or ()),
    )
    host, port = socket.getsockname()[:2]

    def ready() -> None:
        note(
            "serving",
            model=name,
            url=f"http://{f'[{host}]' if ':' in host else host}:{port}/v1",
            seconds=round(time.perf_counter() - began, 1),
            bytes_per_token=plan_of(model).bytes_per_token if is_converted(model) else None,
            pool_bytes=llm.store.pool.nbytes,
            layers_by_torch=len(llm.runner.coverage.faults),
            answer_format=answer_parts(tokenizer, given.answer_format).name,
        )

    server = Server(
        make_app(engine, settings),
        wait_seconds=given.body_seconds,
        stop_seconds=given.stop_seconds,
        give_up=engine.close,
        ready=ready,
    )
    server.serve_until_told(socket)
    return 0


def _model(given: argparse.Namespace):
    if given.compression_ratio is None:
        with told("loading", model=given.model, device=given.device):
            return load_given(given, given.model)
    with told("converting", model=given.model, device=given.device, ratio=given.compression_ratio):
        return convert_to_mla(
            given.model,
            compression_ratio=given.compression_ratio,
            device=given.device,
            dtype=None if given.dtype == "auto" else getattr(torch, given.dtype),
            trust_remote_code=given.trust_remote_code,
            verbose=False,
        )


def _keys(given: argparse.Namespace) -> tuple[str, ...]:
    if given.api_key is not None:
        return tuple(given.api_key)
    known = os.environ.get(KEY_VARIABLE)
    return (known,) if known else ()
