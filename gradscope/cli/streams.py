"""stdout carries the result and nothing else; everything else goes to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gradscope.errors import InputError


@contextlib.contextmanager
def guarded_stdout() -> Iterator[None]:
    """Send to stderr whatever libraries, or a user's cell, print to stdout meanwhile."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def silence_stdout() -> None:
    """After a broken pipe: keep the interpreter's last flush from failing as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def check_writable(path: Path | None) -> None:
    """Raise InputError now, not after the work, if ``path`` cannot be written."""
    if path is None:
        return
    folder = path.parent
    if path.is_dir():
        raise InputError(f"-o {path}: is a directory, expected a file name")
    if not folder.is_dir():
        raise InputError(f"-o {path}: folder {folder} does not exist, create it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"-o {path}: permission denied, choose a file you may write")


def write_result(text: str, path: Path | None) -> None:
    """Write to stdout, or to ``path`` in one move so that a failure loses nothing."""
    if path is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        if path.exists() and not path.is_file():  # a pipe or a device is written, not replaced
            path.write_text(text, "utf-8")
            return
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as scratch:
            scratch.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(scratch.name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask)
        Path(scratch.name).replace(path)
    except OSError as error:
        raise InputError(f"-o {path}: {error.strerror or error}, choose a file you may write") from error
