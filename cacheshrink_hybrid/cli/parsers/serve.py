"""Answer OpenAI's requests over HTTP, from a converted model.

    cacheshrink-hybrid serve MODEL [--port 8000] [--cache-memory 8GiB] [--api-key KEY]

Routes: /v1/models, /v1/completions, /v1/chat/completions, /health, /metrics. A model that is not
converted is converted before it serves with --compression-ratio, or served as it is with --as-is.
The log goes to standard error, a JSON object per line. SIGTERM and Ctrl-C let open answers end, and
a second one ends these too.
docs/SERVE.md has the whole page. Needs the extra serve: pip install 'cacheshrink_hybrid[serve]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from ...byte_counts import parse_bytes
from ...checkpoint.load_faults import is_converted_directory, model_fault
from ...errors import ConfigError
from ...kernels.backend import Backend
from ...serving.answer_formats import AUTO, FORMATS
from ..flags import NOT_SET, add_model_arguments, new_parser
from ..preflight import Memory, Number, TextFile, ratio, whole

NEEDED = ("fastapi", "uvicorn", "llguidance")
KEY_VARIABLE = "CACHESHRINK_API_KEY"
EXAMPLE = '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}'


class Bytes:
    """An amount of memory that is no share of another."""

    def __call__(self, text: str) -> str:
        return text

    def faults(self, value: str) -> Iterator[str]:
        try:
            if parse_bytes(value) < 1:
                yield f"{value} must be positive"
        except ConfigError as error:
            yield str(error)


class ServedName:
    """What clients call the model."""

    def __call__(self, text: str) -> str:
        return text

    def faults(self, value: str) -> Iterator[str]:
        if not value.strip():
            yield "an empty name is none; leave it out, or say what clients are to call the model"


class Origin:
    """What a browser says that a page is of: a scheme and a host, perhaps a port; or all pages."""

    def __call__(self, text: str) -> str:
        return text

    def faults(self, value: str) -> Iterator[str]:
        if value != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", value):
            yield f"{value!r:.80} is no origin; give such as https://chat.example.org, or *"


class Speculation:
    """A `SpeculativeConfig` as a JSON object."""

    def __call__(self, text: str) -> str:
        return text

    def faults(self, value: str) -> Iterator[str]:
        from ...engine.speculation import SpeculativeConfig  # brings torch

        try:
            SpeculativeConfig.of(json.loads(value))
        except ConfigError as error:
            yield str(error)
        except (ValueError, RecursionError) as error:
            yield f"{value!r:.80} is no JSON ({error}); give such as '{EXAMPLE}'"


def parser() -> argparse.ArgumentParser:
    made = new_parser("serve", __doc__, "MODEL")
    add_model_arguments(made)
    made.add_argument(
        "--compression-ratio",
        type=ratio(),
        default=None,
        help="convert MODEL by so much before serving, with the defaults of convert "
        f"(default: {NOT_SET})",
    )
    made.add_argument(
        "--as-is",
        action="store_true",
        help="serve a model that is not converted, with the cache that it has (default: off)",
    )
    group = made.add_argument_group("where")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    group.add_argument(
        "--port",
        type=Number(int, 0, 65535),
        default=8000,
        help="port to listen on, 0 for any that is free (default: 8000)",
    )
    group.add_argument(
        "--name",
        type=ServedName(),
        default=None,
        help="what clients call the model (default: the last part of MODEL)",
    )
    group.add_argument(
        "--api-key",
        action="append",
        default=None,
        help="a key that clients must send, may be repeated; "
        f"(default: ${KEY_VARIABLE}, or none is asked for)",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        type=Origin(),
        default=None,
        metavar="ORIGIN",
        help="let pages of this origin, such as https://chat.example.org, or * for all, use the "
        f"server from a browser, may be repeated (default: {NOT_SET})",
    )
    group.add_argument(
        "--chat-template",
        type=TextFile(),
        default=None,
        metavar="FILE",
        help="chat template to take in place of the tokenizer's (default: the tokenizer's)",
    )
    group.add_argument(
        "--answer-format",
        choices=[AUTO, *(row.name for row in FORMATS)],
        default=AUTO,
        help="how the model writes thoughts and calls of tools; auto asks the tokenizer and its "
        "chat template, docs/SERVE.md has the list (default: auto)",
    )
    group = made.add_argument_group("engine")
    group.add_argument(
        "--cache-memory",
        type=Memory(),
        default="2GiB",
        help="of the pool, such as 8GiB, or 60%% of what is free (default: 2GiB)",
    )
    group.add_argument(
        "--max-batch", type=whole(), default=256, help="requests that run at once (default: 256)"
    )
    group.add_argument(
        "--prefill-chunk",
        type=whole(),
        default=512,
        help="tokens of prompts that a step takes (default: 512)",
    )
    group.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="auto",
        help="of decoding: Triton kernels, functions compiled for the CPU, or torch; auto takes "
        "those of the device (default: auto)",
    )
    group.add_argument(
        "--prefix-host-memory",
        type=Memory(),
        default=None,
        help="of the host, for prefixes that the pool has no room for, such as 16GiB "
        f"(default: {NOT_SET})",
    )
    group.add_argument(
        "--prefix-disk",
        type=Path,
        default=None,
        metavar="DIRECTORY",
        help="for prefixes that find no room in memory; the next server of the model goes on with "
        f"them (default: {NOT_SET})",
    )
    group.add_argument(
        "--prefix-disk-memory",
        type=Bytes(),
        default="4GiB",
        help="most that this directory takes (default: 4GiB)",
    )
    group.add_argument(
        "--speculative-config",
        type=Speculation(),
        default=None,
        metavar="JSON",
        help="try what followed the same tokens earlier in a text, several tokens a step, such as "
        f"'{EXAMPLE}' (default: off)",
    )
    group = made.add_argument_group("limits")
    group.add_argument(
        "--max-open",
        type=whole(),
        default=1024,
        help="requests that run and wait, beyond which 429 is answered (default: 1024)",
    )
    group.add_argument(
        "--max-open-memory",
        type=Bytes(),
        default=None,
        help="bytes of the pool that these may need at their full lengths (default: 8 pools)",
    )
    group.add_argument(
        "--max-body", type=Bytes(), default="4MiB", help="bytes of a request (default: 4MiB)"
    )
    group.add_argument(
        "--body-seconds",
        type=Number(float, 0.1),
        default=60.0,
        help="time for a request's head, for its body, and for a client that reads nothing of its "
        "answer (default: 60)",
    )
    group.add_argument(
        "--answer-seconds",
        type=Number(float, 0.1),
        default=600.0,
        help="time for an answer (default: 600)",
    )
    group.add_argument(
        "--stop-seconds",
        type=whole(0),
        default=30,
        help="time for open answers after SIGTERM (default: 30)",
    )
    return made


def faults(given: argparse.Namespace) -> Iterator[str]:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield (
            f"serve needs {', '.join(missing)}, not installed here; "
            "pip install 'cacheshrink_hybrid[serve]'"
        )
    converted = is_converted_directory(given.model)
    chosen = given.compression_ratio is not None or given.as_is
    if converted and chosen:
        yield f"{given.model} is converted already; leave out --compression-ratio and --as-is"
    if not converted and not chosen and model_fault(given.model) is None:
        yield (
            f"{given.model} is not converted; run cacheshrink-hybrid convert {given.model} OUT "
            "--compression-ratio 4 and serve OUT, or give --compression-ratio 4, or --as-is"
        )
    if given.compression_ratio is not None and given.as_is:
        yield "--compression-ratio and --as-is exclude each other; give one"
    if given.api_key is not None and not all(given.api_key):
        yield "--api-key is empty; give a key, or leave it out"
