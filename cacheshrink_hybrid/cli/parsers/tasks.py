"""Ask lm-eval's questions of models, everything read from the cache that generation uses.

    cacheshrink-hybrid tasks MODEL [MODEL ...] --folder TASKS --json out.json

Tasks are the YAML files of a folder, with data of local files. Without --folder three are made of
the text: which of four continuations follows, which word is last, and perplexity. A context is
read chunk by chunk into a live cache, and its continuations on top of it; lm-eval's own model for
transformers would read no cache back. Prints every figure of every task with its standard error
over documents, and how far each lies from the first model's, document by document. Takes lm-eval:
pip install 'cacheshrink_hybrid[lm-eval]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ...evaluation.defaults import DEFAULT_CHUNK
from ..flags import NOT_SET, add_model_arguments, add_text_arguments, new_parser
from ..preflight import OutputFile, TaskFolder, no_lm_eval, seed, whole


def parser() -> argparse.ArgumentParser:
    made = new_parser("tasks", __doc__, "MODEL [MODEL ...]")
    add_model_arguments(made, several=True)
    made.add_argument(
        "--folder",
        type=TaskFolder(),
        default=None,
        help="YAML files of tasks (default: tasks made of the text)",
    )
    made.add_argument(
        "--tasks", nargs="+", default=None, help="their names (default: all of the folder)"
    )
    made.add_argument(
        "--limit", type=whole(), default=100, help="documents of each task (default: 100)"
    )
    made.add_argument(
        "--fewshot",
        type=whole(0),
        default=None,
        help="examples before each question (default: what tasks say)",
    )
    made.add_argument(
        "--chat", action="store_true", help="ask in the model's chat template (default: off)"
    )
    made.add_argument(
        "--chunk-length",
        type=whole(),
        default=DEFAULT_CHUNK,
        help=f"tokens per pass (default: {DEFAULT_CHUNK})",
    )
    made.add_argument(
        "--seed", type=seed(), default=0, help="of tasks that are made of text (default: 0)"
    )
    add_text_arguments(made)
    made.add_argument(
        "--json",
        type=OutputFile(),
        default=None,
        help=f"write the results here (default: {NOT_SET})",
    )
    return made


def faults(given: argparse.Namespace) -> Iterator[str]:
    yield from no_lm_eval()
    if given.folder is not None and given.text is not None:
        yield "--text is of tasks that are made of it, and --folder has others; give one of them"
