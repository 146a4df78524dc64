"""Progress on stderr of work that is long: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from gradscope.cli.streams import between_words, say
from gradscope.errors import duration, shown

if TYPE_CHECKING:
    from rich.progress import Task

_SILENT_SECONDS = 2.0
# Where stderr is no terminal: a line so often, the first one as late.
_SECONDS_BETWEEN_LINES = 15.0
# Part of the work after which its own pace is all that counts, where it was said before how long it takes.
_TRUSTED = 0.3
# Seconds in which a new estimate takes the place of an old one.
_SETTLING = 10.0
# Reports that are kept, of work of which no time was said, are by this factor later than one another.
_APART = 1.02
# Where it takes longer than was thought, this part of the time it has taken is left, times what is not done.
_LATE = 0.2


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        say(line)


class Pace:
    """How far the work is and how long the rest takes, from any thread; say : writes a line beside it.

    The rest is counted down, and what a report says is come to by degrees: time left that jumps is of no use.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._expected: float | None = None
        self._found: float | None = None  # seconds in all, by the last report
        self._shown: float | None = None  # and on the way to that
        self._last = self._began
        self._reports: deque[tuple[float, float]] = deque()  # (seconds, done), of the later half of the time
        self.done = 0.0
        self.say = _say

    def expect(self, seconds: float) -> None:
        """What is to come takes about so long."""
        self._expected = self._found = self._clock() - self._began + seconds

    def report(self, done: float, total: int) -> None:
        """So many of all are done."""
        elapsed, self.done = self._clock() - self._began, max(self.done, min(done / total, 1.0))
        if self.done <= 0:
            return
        if self._expected is None:
            self._found = self._by_its_later_half(elapsed)
            return
        trust = min(1.0, self.done / _TRUSTED)
        self._found = trust * elapsed / self.done + (1 - trust) * self._expected

    def _by_its_later_half(self, elapsed: float) -> float | None:
        """Seconds in all at the pace of late: first there are programs to compile, or rows that were kept."""
        if not self._reports or elapsed >= _APART * self._reports[-1][0]:
            self._reports.append((elapsed, self.done))
        while len(self._reports) > 1 and self._reports[1][0] <= elapsed / 2:
            self._reports.popleft()
        began, before = self._reports[0]
        return (
            elapsed + (1 - self.done) * (elapsed - began) / (self.done - before)
            if self.done > before
            else None
        )

    @property
    def left(self) -> float | None:
        """Seconds, None where nothing is known yet."""
        if self._found is None:
            return None
        now = self._clock()
        shown = self._found if self._shown is None else self._shown
        self._shown = shown + (1 - math.exp((self._last - now) / _SETTLING)) * (self._found - shown)
        self._last = now
        elapsed = now - self._began
        return max(self._shown - elapsed, _LATE * (1 - self.done) * elapsed)

    def __str__(self) -> str:
        left = None if self.done >= 1 else self.left  # what was expected may be far off
        percent = math.floor(100 * self.done + 1e-9)  # what is not done is not said to be
        return f"{percent} % done" + ("" if left is None else f", about {duration(left)} left")


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Pace | None]:
    """The Pace of the work within, which is shown once that has taken a while; None where nothing is said."""
    if quiet:
        yield None
        return
    pace = Pace()
    moves = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with _bar(pace) if moves else _lines(pace), _heard(pace):
        yield pace


def progress_of_runs(pace: Pace | None, runs: int) -> Callable[[str, int], Mapping[str, Any]]:
    """What is told of each of several runs: arguments of ``analyze`` that show how far all of them are."""

    def begun(name: str, run: int) -> Mapping[str, Any]:
        if pace is None:
            return {}
        pace.report(run, runs)
        return {
            "progress": lambda done, total: pace.report(run + done / total, runs),
            "plan": lambda line, _: pace.say(f"{shown(name)}: {line}"),
        }

    return begun


@contextlib.contextmanager
def _heard(pace: Pace) -> Iterator[None]:
    """Within, what the package logs of long work is said."""

    class Saying(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pace.say(record.getMessage())

    logger, handler = logging.getLogger("gradscope"), Saying()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


@contextlib.contextmanager
def _lines(pace: Pace) -> Iterator[None]:
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            if pace.done < 1:  # what is tried after that says so itself
                pace.say(str(pace))

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _bar(pace: Pace) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.progress_bar import ProgressBar
    from rich.table import Column, Table

    class Shown(ProgressColumn):
        def render(self, task: Task) -> Table:
            row = Table.grid(Column(), Column(), Column(no_wrap=True), padding=(0, 1))
            row.add_row("measuring", ProgressBar(total=1.0, completed=pace.done, width=30), str(pace))
            return row

    bar = Progress(Shown(), console=Console(stderr=True), transient=True)
    bar.add_task("")
    written = partial(bar.console.print, markup=False, highlight=False, soft_wrap=True)
    pace.say = lambda line: written(between_words(f"gradscope: {line}"))
    appear = threading.Timer(_SILENT_SECONDS, bar.start)  # until then not even the cursor is hidden
    appear.daemon = True
    appear.start()
    try:
        yield
    finally:
        appear.cancel()
        appear.join()
        if bar.live.is_started:
            bar.stop()
