"""The one family of errors, and the exit codes of the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the help imports no NumPy
    from gradscope.custom_types import PathLike


class ExitCode(IntEnum):
    """What the shell sees. A crash must never look like a finding."""

    OK = 0
    FINDING = 1
    USAGE = 2
    INTERNAL = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141

    @classmethod
    def judged(cls, *, broken: object, lost: object) -> ExitCode:
        """Of what was held to limits: a broken one is a finding, whatever else could not be measured."""
        return cls.FINDING if broken else cls.USAGE if lost else cls.OK


_MARK = "\N{INVISIBLE SEPARATOR}"
_SPELLED = re.compile(f"{_MARK}([^{_MARK}]*){_MARK}([^{_MARK}]*){_MARK}")


def as_option(python: str, shell: str | None = None) -> str:
    """An option in a message: what Python calls it, and on the command line what that does.

    shell : where it is not the same with dashes. Within the message of a GradscopeError alone.
    """
    return f"{_MARK}{python}{_MARK}{shell or flag(python)}{_MARK}"


def flag(name: str) -> str:
    """What the shell calls an option."""
    return "--" + name.replace("_", "-")


class GradscopeError(Exception):
    """Base of every error gradscope raises on purpose; the message is one line.

    marked : the message to be put into that of another error; in_shell : as the command line spells options.
    """

    def __init__(self, message: str) -> None:
        self.marked = " ".join(message.split())
        self.in_shell = _SPELLED.sub(r"\2", self.marked)
        super().__init__(_SPELLED.sub(r"\1", self.marked))

    def __reduce__(self) -> tuple[type[GradscopeError], tuple[str]]:
        """From process to process as it was raised."""
        return type(self), (self.marked,)


class InputError(GradscopeError, ValueError):
    """What was given cannot be analysed: the message says got, expected, remedy."""


class MisfitError(InputError):
    """What was asked does not fit this layer, and may fit another."""


class BeyondRangeError(InputError):
    """A state leaves the numbers that its dtype holds."""


def shown(text: object) -> str:
    """Text for a one-line message: as it is if printable, else with everything else escaped."""
    plain = str(text)
    return plain if plain.isprintable() else repr(plain)


def quoted(value: object) -> str:
    """What the user gave, for a one-line message."""
    return shown(repr(value))[:80]


def listed(names: Sequence[str], most: int = 8) -> str:
    """A few of the names for a one-line message: a stranger's file may hold thousands."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(shown(name[:80]) for name in names[:most]) + more


def counted(count: int, one: str, many: str = "") -> str:
    """``1 step``, ``2 steps``, ``1 analysis``, ``2 analyses``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def did_you_mean(given: str, names: Iterable[str], most: int = 1) -> str:
    """The end of a message about a name that is not known: those that it begins, else the nearest."""
    known = list(names)
    near = [name for name in sorted(known) if given.strip("-") and name.startswith(given)]
    near = near or difflib.get_close_matches(given, known, n=most, cutoff=0.6)
    return f": did you mean {' or '.join(near[:most])}?" if near else ""


def nearest_or_all(given: object, known: Iterable[str]) -> str:
    """``: did you mean X?`` of what there is, else ``: expected ...`` with all of it."""
    names = list(known)
    return did_you_mean(str(given), names) or f": expected {listed(names, most=30)}"


def duration(seconds: float) -> str:
    """``40 s``, ``3 min`` or ``2 h``: no more digits than an estimate has."""
    size, unit = next((s, u) for s, u in ((1, "s"), (60, "min"), (3600, "h")) if seconds < 90 * s or u == "h")
    count = seconds / size
    return f"{max(1, round(count) if count < 10 else 5 * round(count / 5))} {unit}"


def reason(error: Exception) -> str:
    """What an exception of someone else's says, on one short line."""
    if isinstance(error, UnicodeDecodeError):
        return "no text in UTF-8"
    return shown(" ".join(str(error).split())[:200]) or type(error).__name__


@contextmanager
def about(path: PathLike) -> Iterator[None]:
    """Begin the message of an InputError with the path of the file that it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{shown(path)}: {error.marked}") from error
