"""Progress on stderr, if that is a terminal and the work is long."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_SILENT_SECONDS = 2.0


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A callback ``(done, total)`` that draws a bar once the work has taken two seconds.

    None where there is nobody to look at it.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    started = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("chains", visible=False)

        def advance(done: int, total: int) -> None:
            late = time.monotonic() - started > _SILENT_SECONDS
            bar.update(task, completed=done, total=total, visible=late)

        yield advance
