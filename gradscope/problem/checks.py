"""Checks of single values that a user gave: whole numbers, real numbers, one of a few names."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from gradscope.errors import InputError, as_option, quoted
from gradscope.option import option_of
from gradscope.settings import Settings

_OPTIONS = {field.name for field in fields(Settings)}


def _called(name: str) -> str:
    """A value's name in messages, as the user spells it where it is an option's."""
    return as_option(name) if name in _OPTIONS else name


def whole_number(name: str, value: Any, least: int) -> int:
    """``value`` as an int of at least ``least``; raises InputError."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integral or not least <= value < 2**63:
        raise InputError(f"{_called(name)} is {quoted(value)}, expected a whole number, at least {least}")
    return int(value)


def real(name: str, value: Any, least: float = -math.inf) -> float:
    """``value`` as a finite float of at least ``least``; raises InputError."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        bound = f", at least {least:g}" if math.isfinite(least) else ""
        raise InputError(f"{_called(name)} is {quoted(value)}, expected a finite number{bound}")
    return number


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise InputError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{_called(name)} is {quoted(value)}, expected {' or '.join(choices)}")


def check_choices(settings: Settings) -> None:
    """Raise InputError where a setting is neither its default nor one of its choices."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if (choices := option_of(field).choices) and value is not field.default:
            one_of(field.name, value, choices)
