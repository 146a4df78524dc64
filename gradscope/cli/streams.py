"""stdout carries the result and nothing else; everything else goes to stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from gradscope.errors import InputError, shown
from gradscope.files import behind_links, write_whole


def open_closed_streams() -> None:
    """Take the place of a stdout or stderr that the shell has closed (``>&-``).

    Otherwise the next file opened would get its number. Writing to stdout then fails as on a full
    disk; what goes to stderr is lost.
    """
    for name, number, flags in (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY)):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


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


@contextlib.contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """Where ``quiet``, keep the warnings and logs of libraries from stderr."""
    if not quiet:
        yield
        return
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def silence_stdout() -> None:
    """After a broken pipe: keep the interpreter's last flush from failing as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Within, nothing is said: another process speaks for all. What ends it is said after it, by each."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    saved = {stream: os.dup(stream) for stream in {1, 2, sys.stderr.fileno()}}
    try:
        for stream in saved:
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, before in saved.items():
            os.dup2(before, stream)
            os.close(before)
        os.close(nowhere)


@contextlib.contextmanager
def delivering(where: str) -> Iterator[None]:
    """Raise InputError where the operating system refuses; a reader that left is no error of ours."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"{where}: {error.strerror or error}") from error


def check_writable(path: Path | None, *read: Path | None, option: str = "-o") -> None:
    """Raise InputError now, not after the work, if ``path`` cannot be written or is to be ``read``."""
    if path is None:
        return
    said = f"{option} {path}"
    with delivering(said):
        place = behind_links(path)
        there = _exists(place)
        if place.is_dir():
            raise InputError(f"{said}: is a directory, expected a file name")
        if not place.parent.is_dir():
            raise InputError(f"{said}: folder {place.parent} does not exist, create it first")
        if not os.access(place if there else place.parent, os.W_OK):
            raise InputError(f"{said}: permission denied, choose a file you may write")
        if any(source and same_file(path, source) for source in read):
            raise InputError(f"{said}: is a file to be read, choose another")


def write_result(made: str | bytes, path: Path | None, option: str = "-o") -> None:
    """Write to stdout, or to ``path`` in one move so that a failure loses nothing."""
    data = made if isinstance(made, bytes) else made.encode("utf-8", "replace")
    with delivering("stdout" if path is None else f"{option} {path}"):
        if path is None:
            sys.stdout.write(made if isinstance(made, str) else data.decode())
            sys.stdout.flush()
        else:
            write_whole(path, data)


def say(line: str) -> None:
    """A line on stderr, after the name of the program: notes and warnings."""
    write_line(f"gradscope: {line}")


def sayer(quiet: bool) -> Callable[[str], None]:
    """``say``, or what says nothing."""
    return (lambda _: None) if quiet else say


def write_line(line: str) -> None:
    """A line on stderr as it is."""
    click.echo(between_words(line), err=True)


def between_words(line: str) -> str:
    """A line for stderr; for a terminal that is narrower broken between words, never within one."""
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):  # no terminal: who reads lines has one line
        return line
    indent = "  "
    if width <= len(indent):  # of a terminal that does not know its size
        return line
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def say_written(path: Path | None, made: str | bytes, *, quiet: bool = False) -> None:
    """Of a page or a picture, which nobody reads as text: its size, and what to open it with."""
    if path is None or quiet or not path.is_file():
        return
    size = len(made if isinstance(made, bytes) else made.encode("utf-8", "replace"))
    address = path.resolve().as_uri()
    say(f"wrote {shown(path)}, {size / 1000:,.0f} kB: a browser opens {address}")


def _exists(place: Path) -> bool:
    """As ``place.exists()``, which hides that a name is too long or goes round in circles."""
    try:
        place.stat()
    except FileNotFoundError:
        return False
    return True


def same_file(path: Path, other: Path) -> bool:
    """Whether two names are of one file, which need not be there yet."""
    try:
        return behind_links(path).samefile(other)
    except OSError:  # one of them is not there
        return behind_links(path) == behind_links(other)
