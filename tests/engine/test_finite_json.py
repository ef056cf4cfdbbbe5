"""Schemas whose texts have no end are found, and no others."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.engine.finite_json import can_end
from cacheshrink_hybrid.engine.grammar import grammar_of
from cacheshrink_hybrid.errors import ConfigError

ITSELF: dict[str, Any] = {"$ref": "#/$defs/a"}


def object_of(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def array_of(items: Any, least: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


@pytest.mark.parametrize(
    "definition",
    [
        object_of("x", x=ITSELF),
        array_of(ITSELF, 1),
        object_of("x", x=array_of(ITSELF, 2)),
        {"type": "array", "prefixItems": [{}, ITSELF], "minItems": 2},
        {"anyOf": [object_of("x", x=ITSELF), array_of(ITSELF, 1)]},
        {"allOf": [{"type": "object"}, object_of("x", x=ITSELF)]},
        {"type": ["object", "array"], **array_of(ITSELF, 1), **object_of("x", x=ITSELF)}
        | {"type": ["object", "array"]},
        object_of("x", x={"$ref": "#/$defs/b"}),
        ITSELF,
    ],
)
def test_no_end(definition: dict[str, Any]) -> None:
    schema = {"$defs": {"a": definition, "b": object_of("y", y=ITSELF)}, **ITSELF}
    assert not can_end(schema)
    with pytest.raises(ConfigError, match="no JSON of this schema comes to an end"):
        grammar_of(SamplingParams(json_schema=schema))


@pytest.mark.parametrize(
    "definition",
    [
        object_of(x=ITSELF),
        array_of(ITSELF, 0),
        object_of("x", x={"anyOf": [ITSELF, {"type": "null"}]}),
        object_of("x", x={"type": ["array", "null"], **array_of(ITSELF, 1)} | {"type": ["null"]}),
        {"properties": {"x": ITSELF}, "required": ["x"]},
        object_of("x", x={"$ref": "#/$defs/b"}),
        {"enum": [{"x": 1}], **object_of("x", x=ITSELF)},
        {"type": "array", "prefixItems": [{}, ITSELF], "minItems": 1},
        {"$ref": "https://elsewhere.example/schema"},
        object_of("x", x={"$ref": "#/nowhere"}),
        {"type": 7, "required": 8, "anyOf": []},
        True,
    ],
)
def test_an_end(definition: Any) -> None:
    assert can_end({"$defs": {"a": definition, "b": {"type": "string"}}, **ITSELF})


def test_the_whole_may_be_its_own_part() -> None:
    assert not can_end(object_of("x", x={"$ref": "#"}))
    assert can_end(object_of("x", x={"anyOf": [{"$ref": "#"}, {"type": "integer"}]}))


def test_chains_of_references() -> None:
    names = [f"d{number}" for number in range(40)]
    parts = {name: object_of("x", x={"$ref": f"#/$defs/{then}"}) for name, then in pairwise(names)}
    for last, due in (({"type": "string"}, True), (object_of("x", x={"$ref": "#"}), False)):
        schema = {"$defs": {**parts, names[-1]: last}, "$ref": f"#/$defs/{names[0]}"}
        assert can_end(schema) is due


def test_large_schemas_are_not_looked_through() -> None:
    """It could not be told within a time that others can wait for."""
    for number, due in ((100, False), (40_000, True)):
        many = {
            f"d{i}": object_of("x", x={"$ref": f"#/$defs/d{(i + 1) % number}"})
            for i in range(number)
        }
        assert can_end({"$defs": many, "$ref": "#/$defs/d0"}) is due
