"""What the fields of a row may hold: a file may come from a stranger, or from an editor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from gradscope.errors import InputError, quoted

# Beyond it no float64 has a square, or an exponent.
_LARGEST = 1e300


def check_fields(row: Mapping[str, Any]) -> None:
    """Raise InputError for a field that no command of ours has written so; one that is None says nothing."""
    for name, (holds, expected) in _FIELDS.items():
        if (value := row.get(name)) is not None and not holds(value):
            raise InputError(f"{name} is {quoted(value)}, expected {expected}: gradscope wrote no such row")


def finite_number(text: str) -> float:
    """A number of JSON, of which Python would read NaN, Infinity and 1e999 too; raises InputError."""
    if not math.isfinite(number := float(text)):
        raise InputError(f"{quoted(text)} is no number that JSON knows: gradscope wrote no such row")
    return number


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _numbers(value: Any) -> bool:
    """By name, and None where one is not known."""
    return isinstance(value, dict) and all(one is None or _number(one) for one in value.values())


def _settings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, int | float | str) for one in value.values())


def _curve(value: Any) -> bool:
    """As many lags as norms, None where one is zero."""
    lags, norms = (value.get("lag"), value.get("log10_norm")) if isinstance(value, dict) else (None, None)
    if not (isinstance(lags, list) and isinstance(norms, list) and len(lags) == len(norms)):
        return False
    return all(map(_count, lags)) and all(one is None or _number(one) for one in norms)


def _part(value: Any) -> bool:
    """Numbers and words by name, in parts of parts and lists too."""
    if isinstance(value, dict):
        return all(map(_part, value.values()))
    if isinstance(value, list):
        return all(map(_part, value))
    return value is None or _text(value) or _number(value)


def _named(value: Any) -> bool:
    """A part of which these names are what columns take them for."""
    if not (isinstance(value, dict) and _part(value)):
        return False
    numbers = [value.get(name) for name in ("log10_gradient", "log10_norm", "rate", "horizon")]
    for name, inner in (("clip", "factor"), ("tbptt", "bias")):
        part = value.get(name)
        if part is not None and not isinstance(part, dict):
            return False
        numbers.append((part or {}).get(inner))
    known = all(one is None or _number(one) for one in numbers)
    return known and isinstance(value.get("verdict"), str | None)


_Holds = tuple[Callable[[Any], bool], str]
_A_NUMBER, _A_COUNT, _A_TEXT = (_number, "a number"), (_count, "a whole number"), (_text, "text")
_A_PART = (_named, "numbers by name")
_FIELDS: Mapping[str, _Holds] = {
    **dict.fromkeys(("log10_norm", "log10_norm_error", "rate", "horizon"), _A_NUMBER),
    **dict.fromkeys(("log10_largest_gain", "saturated", "theory_rate"), _A_NUMBER),
    **dict.fromkeys(("index", "of", "steps", "sequences"), _A_COUNT),
    **dict.fromkeys(("key", "gradscope", "verdict", "error", "subject"), _A_TEXT),
    "converged": (lambda value: isinstance(value, bool), "true or false"),
    "notes": (_texts, "sentences"),
    "by_lag": (_curve, "lags, and as many numbers"),
    "shares": (_numbers, "numbers by name"),
    "settings": (_settings, "values by name"),
    "loss": _A_PART,
    "masks": _A_PART,
}
