"""The values of an axis: written as FROM:TO:COUNT or A,B,C, or given as numbers, words, files, cells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradscope.cells.cell import Cell
from gradscope.errors import InputError, quoted
from gradscope.option import is_number

_RANGE = re.compile(r"([^:]+):([^:]+):([^:]+?)(:log)?")
MOST_VALUES = 10_000


@dataclass(frozen=True)
class ValueKind:
    """What an option takes.

    option : its name; number : int or float, None where it takes no number; word : the value that any other
    text stands for (ValueError says what is wrong with it), None where it takes numbers alone.
    """

    option: str
    number: type[int | float] | None
    word: Callable[[str], Any] | None = None

    def written(self, text: str) -> list[Any]:
        """The values of ``0.5:2:16``, ``1:1000:4:log`` or ``a,b,c``."""
        match = _RANGE.fullmatch(text) if self.number else None
        if match and (self.word is None or is_number(match[1])):
            return self._range(text, *match.groups())
        if ":" in text and self.word is None:
            raise InputError(
                f"--grid {self.option} is {quoted(text)}, expected FROM:TO:COUNT such as 0.5:2:16 (with :log "
                "at the end by equal factors), or A,B,C"
            )
        return [self._of_text(part) for part in text.split(",")]

    def given(self, value: Any) -> Any:
        """A value that Python gave, as one of the option's."""
        if isinstance(value, str):
            return self._of_text(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and self.number:
            return self._whole(value, value) if self.number is int else self._finite(float(value), value)
        if not self.word or not isinstance(value, Path | Cell):
            raise InputError(f"--grid {self.option} has {quoted(value)}, expected {self._expected}")
        return value

    @property
    def _expected(self) -> str:
        numbers = None if not self.number else "a whole number" if self.number is int else "a number"
        return " or ".join(filter(None, (numbers, self.word and "text, a path or a cell")))

    def _of_text(self, text: str) -> Any:
        if self.number and (self.word is None or is_number(text)):
            return self._finite(self._number(text, self.number), text)
        assert self.word is not None
        try:
            return self.word(text.strip())
        except ValueError as error:
            raise InputError(f"--grid {self.option} has {quoted(text)}, {error}") from None

    def _number(self, text: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(text.strip())
        except ValueError:
            expected = "a whole number" if parse is int else "a number"
            raise InputError(f"--grid {self.option} has {quoted(text)}, expected {expected}") from None

    def _finite(self, value: Any, given: Any) -> Any:
        if not math.isfinite(value):
            raise InputError(f"--grid {self.option} has {quoted(given)}, expected a finite number")
        return value

    def _range(self, text: str, first: str, last: str, many: str, log: str | None) -> list[Any]:
        low, high = (self._finite(self._number(end, float), end) for end in (first, last))
        count = self._number(many, int)
        if not 2 <= count <= MOST_VALUES or low == high:
            raise InputError(
                f"--grid {self.option} is {quoted(text)}: a range has two ends and 2 to {MOST_VALUES} "
                f"values; of one value give {self.option}={first}"
            )
        if log and min(low, high) <= 0:
            raise InputError(f"--grid {self.option} is {quoted(text)}: equal factors are of numbers above 0")
        found = _between(low, high, count, log)
        return [self._whole(text, value) for value in found] if self.number is int else found

    def _whole(self, given: Any, value: float) -> int:
        if value != round(self._finite(value, given)):
            raise InputError(
                f"--grid {self.option} is {quoted(given)}, which has {value:g}, expected whole numbers: "
                "choose a count that divides the range, or give A,B,C"
            )
        return int(value)


def _between(low: float, high: float, count: int, log: str | None) -> list[float]:
    """So many from one end to the other, both as they were given; short decimals stay short."""
    parts = [k / (count - 1) for k in range(count)]
    if log:
        inner = [math.exp((1 - part) * math.log(low) + part * math.log(high)) for part in parts]
    else:
        inner = [(1 - part) * low + part * high for part in parts]
    # What is zero by rounding is zero: digits are counted from the largest.
    digits = 12 - math.ceil(math.log10(max(abs(low), abs(high))))
    shortened = [float(f"{value:.12g}") if log else round(value, digits) for value in inner[1:-1]]
    return [low, *(value + 0.0 for value in shortened), high]
