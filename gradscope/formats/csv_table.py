"""Tables of numbers as text, a row to a line."""

from __future__ import annotations

import io
import itertools
import re
import warnings

import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, reason
from gradscope.formats.tensors import as_float64, opened
from gradscope.option import is_number

# Between the columns is the first of these that the first line has; else there are spaces.
_DELIMITERS = "\t;,"
# So much of that line is looked at: it may be as long as the file.
_HEADING = 4096


def read_csv(path: PathLike) -> Array:
    """The numbers (rows, columns) of a ``.csv`` file; a first line without any number is a heading.

    Columns end at commas, semicolons, tabs or spaces; what follows a # is left out. Raises InputError
    for anything but as many finite numbers in every row.
    """
    with opened(path, ".csv") as (file, _):
        lines = io.TextIOWrapper(file, "utf-8-sig")
        first = next((line for line in lines if line.partition("#")[0].strip()), "")
        delimiter = next((mark for mark in _DELIMITERS if mark in first), None)
        cells = [cell.strip(' "\n') for cell in first[:_HEADING].split(delimiter)]
        kept = [first] if any(map(is_number, cells)) else []
        try:
            with warnings.catch_warnings(action="ignore"):  # of no rows, which are an error here
                rows = np.loadtxt(itertools.chain(kept, lines), delimiter=delimiter, ndmin=2, quotechar='"')
        except ValueError as error:
            raise InputError(f"{_complaint(error)}; expected one row of numbers for each step") from error
        if not rows.size:
            raise InputError("holds no numbers, expected one row for each step")
        return as_float64(rows, "the table")


def _complaint(error: ValueError) -> str:
    """What NumPy says of a table, which counts rows from 0 where it means a cell."""
    text = reason(error).partition(";")[0].rstrip(".")
    return re.sub(r"row (\d+), column", lambda row: f"row {int(row[1]) + 1}, column", text)
