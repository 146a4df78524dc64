"""What the result is shown on: its width, its colours, its characters."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

_WIDTH_OF_A_PIPE = 100
_WIDEST = 1000


@dataclass(frozen=True)
class Terminal:
    """width : columns; color : may use ANSI colours; unicode : may use block characters."""

    width: int = 80
    color: bool = False
    unicode: bool = True


def terminal_for(color: str, *, to_file: bool) -> Terminal:
    """The terminal behind stdout, or the plain page of a file.

    color : "auto" heeds NO_COLOR, FORCE_COLOR and TERM=dumb; "always" and "never" do not ask.
    """
    tty = sys.stdout.isatty() and not to_file
    width = shutil.get_terminal_size().columns if tty else _page()
    return Terminal(min(max(width, 40), _WIDEST), _color(color, tty), to_file or _unicode())


def _page() -> int:
    """COLUMNS if that is a positive number, as ``shutil`` reads it."""
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    return columns if columns > 0 else _WIDTH_OF_A_PIPE


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
