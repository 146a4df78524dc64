"""The one family of errors, and the exit codes of the command line."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees. A crash must never look like a finding."""

    OK = 0
    FINDING = 1
    USAGE = 2
    INTERNAL = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class GradscopeError(Exception):
    """Base of every error gradscope raises on purpose; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class InputError(GradscopeError, ValueError):
    """What was given cannot be analysed: the message says got, expected, remedy."""


class MisfitError(InputError):
    """What was asked does not fit this layer, and may fit another."""
