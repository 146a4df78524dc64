"""Gains as JSON has them, in words: null is a gain of zero, or one that rounding left nothing of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscope.report.verdict import scientific


def gain_told(log10: float | None, *, lost: bool = False) -> str:
    """``3.48e-24`` for the gain whose log10 is given; of null ``lost`` tells which it is."""
    return scientific(log10) if log10 is not None else scientific(math.nan if lost else -math.inf)


def gain_in(of: Mapping[str, Any]) -> str:
    """The gain of a chain or a row."""
    return gain_told(_log10(of), lost=gain_lost(of))


def gain_in_row(row: Mapping[str, Any], none: str = "-") -> str:
    """The gain of a row; ``none`` where it could not be measured."""
    return none if row.get("verdict") is None else gain_in(row)


def number_in(row: Mapping[str, Any], name: str, form: str, none: str = "-") -> str:
    """A number of a row in the form that ``format`` takes; ``none`` where it has none."""
    value = row.get(name)
    return format(value, form) if isinstance(value, int | float) else none


def gain_lost(of: Mapping[str, Any]) -> bool:
    """Whether rounding left nothing of the gain of a chain or a row."""
    return _log10(of) is None and bool(of.get("unmeasured"))


def lost_in(by_lag: Mapping[str, Any]) -> frozenset[int]:
    """The lags at which rounding left nothing of the gain, as the curve of a chain or a row says."""
    return frozenset(by_lag.get("lost") or ())


def gains_by_lag(of: Mapping[str, Any]) -> dict[int, str]:
    """{lag: gain} of a chain or a row."""
    lost = lost_in(of["by_lag"])
    pairs = zip(of["by_lag"]["lag"], of["by_lag"]["log10_norm"], strict=True)
    return {lag: gain_told(norm, lost=lag in lost) for lag, norm in pairs}


def _log10(of: Mapping[str, Any]) -> float | None:
    """A row has the median alone."""
    told = of.get("log10_norm")
    found = told.get("median") if isinstance(told, Mapping) else told
    return found if isinstance(found, int | float) else None
