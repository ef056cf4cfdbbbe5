#!/usr/bin/env bash
# pydantic 2.14.4: a list that is annotated with FailFast() cannot be one type of several.
#
# The marker has no hash, and typing compares the parts of a union by theirs, so that a field of
# `Annotated[list[int], FailFast()] | None`, optional as most fields of an API are, is an error where
# the class is made. Field(fail_fast=True) says the same, and has one.
# Seen: "unhashable type: 'FailFast'"; with Field one error is told of a thousand.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check pydantic==2.14.4
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
from typing import Annotated

from pydantic import FailFast, Field, TypeAdapter, ValidationError

marked = Annotated[list[int], FailFast()]
try:
    TypeAdapter(marked).validate_python(["x"] * 1000)
except ValidationError as error:
    alone = error.error_count()
try:
    marked | None
except TypeError as error:
    said = str(error)
optional = Annotated[list[int], Field(fail_fast=True)] | None
try:
    TypeAdapter(optional).validate_python(["x"] * 1000)
except ValidationError as error:
    of_field = error.error_count()
print(f"alone {alone} error; optional: {said}; optional with Field {of_field} error")
assert (alone, said, of_field) == (1, "unhashable type: 'FailFast'", 1), "changed"
PYTHON
