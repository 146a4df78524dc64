"""A run that a library may end by a signal, in a child of which the parent says so in one line."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from typing import Any, NoReturn

from gradscope.errors import InputError, shown

# What ends a process from outside, and is passed on.
_PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The exit code of a child that gives up itself, and what it says then.
_LOST, _OURS = 75, "lost: "
# The reason in XLA's logs is a status and its message; or it is our own.
_STATUS = r"\b(?:[A-Z]+_[A-Z_]+|ABORTED|INTERNAL|UNAVAILABLE|UNKNOWN): "
_LOGGED = re.compile(rf"(?:^{_OURS}|(?={_STATUS}))(.*)$", re.M)


def split_off(what: str) -> int | None:
    """Go on in a child: None there, and in the parent, once the child has ended, its exit code.

    what : the beginning of the InputError where a signal ended the child, as it does where the library
        behind ``jax.distributed`` gives up. What libraries write to stderr meanwhile is not shown.
    """
    logs = tempfile.TemporaryFile()  # noqa: SIM115  # of parent and child
    alive, parent_lives = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(parent_lives)
        _in_child(logs.fileno(), alive)
        return None
    os.close(alive)
    for number in _PASSED:
        signal.signal(number, lambda number, _: _pass(child, number))
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != _LOST:
        return os.WEXITSTATUS(status)
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended in _PASSED:
        signal.signal(ended, signal.SIG_DFL)
        os.kill(os.getpid(), ended)
    raise InputError(f"{what} ({_last_words(logs)})")


def give_up(why: str) -> NoReturn:
    """End the child as a signal would, for this reason."""
    os.write(2, f"\n{_OURS}{why}\n".encode("utf-8", "replace"))
    os._exit(_LOST)


def _in_child(logs: int, alive: int) -> None:
    """Python keeps its stderr, descriptor 2 is that of the logs; without its parent the process ends."""
    sys.stderr = open(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="replace")  # noqa: SIM115, PTH123
    os.dup2(logs, 2)

    def watch() -> None:
        os.read(alive, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pass(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _last_words(logs: Any) -> str:
    """The last that the library logged before it gave up."""
    logs.seek(0)
    said = _LOGGED.findall(logs.read().decode("utf-8", "replace"))
    return shown(" ".join(said[-1].split())[:160]) if said else "no reason was given"
