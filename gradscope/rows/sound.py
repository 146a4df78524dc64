"""Whether a row is what its schema says: a file may come from a stranger, or from an editor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from gradscope.errors import InputError, quoted
from gradscope.schemas import schema

# Beyond it no float64 has a square, or an exponent; and beyond this not every whole number.
_LARGEST, _LARGEST_COUNT = 1e300, 2**53
_TYPES: Mapping[str, type] = {"string": str, "boolean": bool, "array": list, "object": dict}
_WORDS = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "values by name",
    "null": "null",
}


def check_fields(row: Mapping[str, Any]) -> None:
    """Raise InputError for a field that is not as the schema of its row has it; None says nothing.

    A field may be missing, as from an older version, or be another that the schema does not know.
    """
    of = _schema(row["schema"])
    for name, part in of["properties"].items():
        if (value := row.get(name)) is None or (_is(value, part, of["$defs"]) and _fits(name, value)):
            continue
        raise InputError(f"{name} is {quoted(value)}, {_expected(part, row)}: gradscope wrote no such row")


def finite_number(text: str) -> float:
    """A number of JSON, of which Python would read NaN, Infinity and 1e999 too; raises InputError."""
    if not math.isfinite(number := float(text)):
        raise InputError(f"{quoted(text)} is no number that JSON knows: gradscope wrote no such row")
    return number


@cache
def _schema(name: str) -> dict[str, Any]:
    return {"$defs": {}, **schema(name)}


def _is(value: Any, part: Mapping[str, Any], parts: Mapping[str, Any]) -> bool:
    """Whether a value holds what this part of a schema asks for; its descriptions and ``required`` do not."""
    if "$ref" in part:
        return _is(value, parts[part["$ref"].removeprefix("#/$defs/")], parts)
    kinds = part.get("type", list(_WORDS))
    if not any(_is_of(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in part and value not in part["enum"]:
        return False
    if isinstance(value, dict):
        known, other = part.get("properties", {}), part.get("additionalProperties", {})
        return all(one is None or _is(one, known.get(name, other), parts) for name, one in value.items())
    if isinstance(value, list):
        return all(_is(one, part.get("items", {}), parts) for one in value)
    least, most = part.get("minimum", -math.inf), part.get("maximum", math.inf)
    return not isinstance(value, int | float) or least <= value <= most


def _is_of(value: Any, kind: str) -> bool:
    if kind in _TYPES:
        return isinstance(value, _TYPES[kind])
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value is None and kind == "null"
    if kind == "integer":
        return isinstance(value, int) and abs(value) < _LARGEST_COUNT
    return kind == "number" and abs(value) < _LARGEST


def _fits(name: str, value: Any) -> bool:
    """What the schema does not say: as many norms as lags."""
    if name != "by_lag":
        return True
    lags, norms = value.get("lag"), value.get("log10_norm")
    return isinstance(lags, list) and isinstance(norms, list) and len(lags) == len(norms)


def _expected(part: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What stands in its place, where that is a word, or where that can be read."""
    kinds = part.get("type")
    words = [_WORDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds or ())]
    if not words or set(words) & {"a list", "values by name"}:
        return f"expected what `gradscope schema {row['schema'].split('/')[1]}` says"
    bounds = (("from", "minimum"), ("to", "maximum"))
    within = "".join(f" {word} {part[key]}" for word, key in bounds if key in part)
    return f"expected {' or '.join(words)}{within}"
