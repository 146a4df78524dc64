"""Where in its file a budget stands, for the annotation of that line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BudgetPlace:
    """A value in a TOML file: the keys that lead to it; known : its line, where another process found it."""

    file: Path
    keys: tuple[str, ...]
    known: int | None = None

    @cached_property
    def line(self) -> int | None:
        """The line, from 1, that it begins on; None where the file has it no longer."""
        if self.known is not None:
            return self.known
        try:
            return line_of(self.file.read_text("utf-8"), self.keys)
        except (OSError, ValueError):
            return None


def line_of(text: str, keys: Sequence[str]) -> int | None:
    """The line, from 1, on which the value of these keys begins; None where they lead nowhere.

    A parser of TOML tells no lines. But the first n lines of a file lead to the value only if they hold it,
    and cannot be read at all where they end within one. So however it is spelled, it stands right after the
    longest beginning of the file that can be read and does not lead to it.
    """
    lines = text.replace("\r\n", "\n").split("\n")

    def leads(end: int) -> bool | None:
        """Whether the first lines hold it; None where they cannot be read."""
        try:
            found: Any = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            return None
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found is not None

    without, having = 0, len(lines)
    if not leads(having):
        return None
    while having - without > 1:
        middle = (without + having) // 2
        around = [*range(middle, having), *range(middle - 1, without, -1)]
        known = ((end, held) for end in around if (held := leads(end)) is not None)
        end, held = next(known, (None, None))
        if end is None:
            break
        without, having = (without, end) if held else (end, having)
    return without + 1
