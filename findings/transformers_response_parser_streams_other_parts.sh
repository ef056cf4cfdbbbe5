#!/usr/bin/env bash
# transformers 5.24.0: ResponseParser reads other parts of an answer that comes in pieces than of the same
# answer at once, where the end of a part is a pattern with something optional behind it.
#
# Seen with close_pattern "</call>(?:</calls>)?": at once the answer has a call and nothing else; character by
# character its content is "</calls>" as well. The end is taken as final when the next character comes, though
# that is the first one of what may follow. A lookahead that names all that may follow helps.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
from transformers.utils.chat_parsing import ResponseParser

TEXT = '<call>{"a": 1}</call></calls>'


def parts(pieces, close):
    """What an answer that comes in these pieces is read as."""
    call = {"open": "<call>", "close_pattern": close, "repeats": True, "content": "json"}
    fields = {"content": {"content": "text"}, "tool_calls": call}
    parser = ResponseParser({"start_anchor": "answer:", "fields": fields}, prefix="")
    for piece in pieces:
        parser.feed(piece)
    return parser.finalize()[0]


whole = {"tool_calls": [{"a": 1}]}
for close, as_it_comes in (
    (r"</call>(?:</calls>)?", {**whole, "content": "</calls>"}),
    (r"</call>(?:</calls>|(?=<call>)|$)", whole),
):
    print(close, "| at once:", parts([TEXT], close), "| by characters:", parts(TEXT, close))
    assert parts([TEXT], close) == whole
    assert parts(TEXT, close) == as_it_comes, "changed"
PYTHON
