"""Whether a JSON schema has texts that come to an end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

SHORT = "string", "number", "integer", "boolean", "null"
"""Types of which every schema has short texts, if it has any."""
MOST_LOOKS = 50_000
"""At parts of a schema; of one that takes more it cannot be told."""


def can_end(schema: Any) -> bool:
    """False where every text of a schema holds another one of the same, and so has no end: as of an
    object that must have a property which is such an object again.

    What cannot be told counts as something that ends: other drafts' words, references to elsewhere.

    Args:
        schema: as from JSON.
    """
    endings = _Endings(schema)
    return endings.of(schema)


class _Endings:
    """The least fixed point: nothing ends but what ends without itself."""

    def __init__(self, root: Any) -> None:
        self._looks = 0
        self._known = dict.fromkeys(_references(root), False)
        changed = True
        while changed:
            changed = False
            for reference, known in self._known.items():
                if not known and self.of(_target(root, reference)):
                    self._known[reference] = changed = True

    def of(self, schema: Any) -> bool:
        self._looks += 1
        if self._looks > MOST_LOOKS:
            return True
        if not isinstance(schema, Mapping) or "enum" in schema or "const" in schema:
            return True
        reference = schema.get("$ref")
        if isinstance(reference, str) and not self._known.get(reference, True):
            return False
        for name in ("anyOf", "oneOf"):
            options = schema.get(name)
            if isinstance(options, list) and options and not any(map(self.of, options)):
                return False
        parts = schema.get("allOf")
        if isinstance(parts, list) and not all(map(self.of, parts)):
            return False
        return self._of_types(schema)

    def _of_types(self, schema: Mapping[str, Any]) -> bool:
        types = schema.get("type")
        named = [types] if isinstance(types, str) else types
        if not isinstance(named, list) or any(name in SHORT for name in named):
            return True
        objects = "object" in named and self._object(schema)
        return objects or ("array" in named and self._array(schema))

    def _object(self, schema: Mapping[str, Any]) -> bool:
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            return True
        return all(self.of(properties.get(name)) for name in required if isinstance(name, str))

    def _array(self, schema: Mapping[str, Any]) -> bool:
        least, items = schema.get("minItems", 0), schema.get("items")
        first = schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        if not isinstance(least, int) or least <= 0:
            return True
        further = [items] if least > len(first) else []
        return all(map(self.of, [*first[:least], *further]))


def _references(schema: Any) -> Iterator[str]:
    """All within the schema."""
    open_parts = [schema]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, Mapping):
            reference = part.get("$ref")
            if isinstance(reference, str):
                yield reference
            open_parts.extend(part.values())
        elif isinstance(part, list):
            open_parts.extend(part)


def _target(root: Any, reference: str) -> Any:
    """What a reference within the schema points to; None where there is nothing."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    found = root
    for step in reference[2:].split("/"):
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found
