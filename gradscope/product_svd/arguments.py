"""What is asked of ``spectrum``, checked: one line for whatever cannot be meant."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from gradscope.errors import InputError, quoted

ACCURACIES = ("full", "fast")


def check_asked(top: Any, floor: Any, entry_error: Any, accuracy: Any, workers: Any) -> None:
    """Raise InputError for what is no choice of any chain."""
    if top is not None and not _whole(top):
        raise InputError(f"top is {quoted(top)}, expected a whole number of values, or None for all")
    if not isinstance(floor, Real) or math.isnan(float(floor)):
        raise InputError(f"floor is {quoted(floor)}, expected a number: the log10 of a gain")
    if not isinstance(entry_error, Real) or not 0 <= float(entry_error) < 1:  # not <, or NaN passes
        raise InputError(
            f"entry_error is {quoted(entry_error)}, expected a number from 0 to below 1: the relative "
            "rounding unit of the entries"
        )
    if accuracy not in ACCURACIES:
        raise InputError(f"accuracy is {quoted(accuracy)}, expected one of {', '.join(ACCURACIES)}")
    if workers is not None and not (_whole(workers) and workers >= 1):
        raise InputError(
            f"workers is {quoted(workers)}, expected a whole number from 1, or None for all cores"
        )


def window_of(window: Any, size: int) -> tuple[slice, slice]:
    """Rows and columns of a product of ``size`` states; all of them of None. Raises InputError."""
    if window is None:
        return slice(None), slice(None)
    pair = isinstance(window, tuple) and len(window) == 2 and all(isinstance(p, slice) for p in window)
    if not pair or not all(_inside(part, size) for part in window):
        raise InputError(
            f"window is {quoted(window)}, expected two slices, of rows and of columns, within the {size} "
            "states"
        )
    if not all(len(range(size)[part]) for part in window):
        raise InputError(
            f"window is {quoted(window)}, expected at least one row and column of the {size} states"
        )
    rows, columns = window
    return rows, columns


def _inside(part: slice, size: int) -> bool:
    ends = [end for end in (part.start, part.stop) if end is not None]
    step = part.step is None or (_whole(part.step) and part.step >= 1)
    return step and all(_whole(end) and -size <= end <= size for end in ends)


def _whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)
