"""Limits that hold in place of those that are broken, rounded outward; every comment of the file is kept."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import tomllib
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from gradscope.config_file import ConfigFile
from gradscope.errors import InputError, shown
from gradscope.gate.budgets import Check
from gradscope.gate.checks import Checks, check_line

# Digits of a limit: more would be broken by the next rounding.
_DIGITS = 2


def check_toml_writer() -> None:
    """Raise InputError without the library that rewrites TOML."""
    if importlib.util.find_spec("tomlkit") is None:
        raise InputError("--update-budgets needs tomlkit: pip install 'gradscope[ci]'")


def updated(file: ConfigFile, checks: Checks) -> tuple[str, str, list[str]]:
    """(difference as diff -u shows it, the new text of the file, sentences on what cannot be updated)."""
    import tomlkit

    text = file.text
    document, expected = tomlkit.parse(text), tomllib.loads(text)
    left = []
    for check in checks.broken:
        limit = _limit(check)
        place = checks.places.get((check.analysis, check.budget.metric))
        if limit is None or place is None:
            left.append(f"no limit would hold: {check_line(check)}")
            continue
        name, value = limit
        for root in (document, expected):
            table: Any = root
            for key in place.keys:
                table = table[key]
            table[name] = value
    new = tomlkit.dumps(document)
    if tomllib.loads(new) != expected:  # of all ways to spell a table the writer may know one wrong
        raise InputError(f"{shown(file.path)}: cannot be rewritten: write every budget as NAME = {{max = 3}}")
    name = os.path.relpath(file.path)
    lines = difflib.unified_diff(text.splitlines(True), new.splitlines(True), name, name)
    return "".join(lines), new, left


def _limit(check: Check) -> tuple[str, int | float] | None:
    """Which limit is broken, and one that holds, further out than the value and its error."""
    budget, value, error = check.budget, check.value, check.error or 0.0
    if value is None or not math.isfinite(value):
        return None
    if budget.max is not None and value > budget.max:
        return "max", outward(value + error, up=True)
    return "min", outward(value - error, up=False)


def outward(value: float, *, up: bool) -> int | float:
    """The nearest number of few digits that is not below a value, or not above it."""
    exact = Decimal(repr(value))
    if not exact:
        return 0
    step = Decimal(1).scaleb(exact.adjusted() + 1 - _DIGITS)
    near = (exact / step).to_integral_value(ROUND_CEILING if up else ROUND_FLOOR) * step
    return int(near) if near == near.to_integral_value() and abs(near) < 2**53 else float(near)
