"""Numbers as mantissa and power of two, and their log10 to the last digit."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradscope.custom_types import Array

LOG10_2 = np.log10(np.longdouble(2))


def log10(mantissa: Any, exponent: Any) -> Array:
    """log10 of mantissa * 2**exponent, in long double; -inf of zero."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log10(np.asarray(mantissa, np.longdouble)) + exponent * LOG10_2)


def decades(mantissa: Any, exponent: Any) -> Array:
    """The same in float64."""
    return log10(mantissa, exponent).astype(np.float64)


def median_of_known(rows: Array) -> Array:
    """(k,), the median of each column of (B, k) without NaN, and NaN where it has nothing else."""
    found, some = np.full(rows.shape[1], np.nan), ~np.isnan(rows).all(axis=0)
    found[some] = np.nanmedian(rows[:, some], axis=0)
    return found
