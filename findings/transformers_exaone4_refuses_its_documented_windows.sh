#!/usr/bin/env bash
# transformers 5.24.0: two settings that Exaone4Config documents end in arithmetic on zero or on text.
#
# Its documentation has sliding_window_pattern as a number, a string such as "LLLG", or None for no
# windows; sliding_window is annotated with None.
# Seen without layer_types: ZeroDivisionError for sliding_window=None, TypeError for the patterns "LLLG"
# and None; the number 4 gives the layer types that "LLLG" is said to mean.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
cd "$work"
TRANSFORMERS_VERBOSITY=error "$work/env/bin/python" - <<'PYTHON'
import transformers

seen = {}
for name, value in (
    ("sliding_window", None),
    ("sliding_window_pattern", "LLLG"),
    ("sliding_window_pattern", None),
    ("sliding_window_pattern", 4),
):
    try:
        config = transformers.Exaone4Config(num_hidden_layers=4, **{name: value})
    except (ZeroDivisionError, TypeError) as error:
        seen[name, value] = type(error)
        print(f"{name}={value!r}: {type(error).__name__}: {error}")
    else:
        seen[name, value] = config.layer_types
        print(f"{name}={value!r}: {config.layer_types}")
assert seen["sliding_window_pattern", 4] == ["sliding_attention"] * 3 + ["full_attention"]
assert seen["sliding_window", None] is ZeroDivisionError, "changed"
assert seen["sliding_window_pattern", "LLLG"] is TypeError, "changed"
assert seen["sliding_window_pattern", None] is TypeError, "changed"
PYTHON
