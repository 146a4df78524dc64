"""What the result is shown on: its width, its colours, its characters."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

_WIDTH_OF_A_PIPE, _HEIGHT_OF_A_PIPE = 100, 40
_WIDEST = 1000


@dataclass(frozen=True)
class Terminal:
    """width : columns; color : may use ANSI colours; unicode : may use block characters; height : rows."""

    width: int = 80
    color: bool = False
    unicode: bool = True
    height: int = 24


def terminal_for(color: str, *, to_file: bool) -> Terminal:
    """The terminal behind stdout, or the plain page of a file.

    color : "auto" heeds NO_COLOR, FORCE_COLOR and TERM=dumb; "always" and "never" do not ask.
    """
    tty = sys.stdout.isatty() and not to_file
    width, height = (
        shutil.get_terminal_size()
        if tty
        else (_given("COLUMNS", _WIDTH_OF_A_PIPE), _given("LINES", _HEIGHT_OF_A_PIPE))
    )
    width, height = min(max(width, 40), _WIDEST), min(max(height, 1), _WIDEST)
    return Terminal(width, _color(color, tty), to_file or _unicode(), height)


def _given(variable: str, otherwise: int) -> int:
    """A variable if that is a positive number, as ``shutil`` reads it."""
    try:
        number = int(os.environ.get(variable, ""))
    except ValueError:
        number = 0
    return number if number > 0 else otherwise


def _color(choice: str, tty: bool) -> bool:
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return tty and os.environ.get("TERM") != "dumb"


def _unicode() -> bool:
    try:
        "█▁│•σ".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
