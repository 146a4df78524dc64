"""Progress on stderr, if that is a terminal and the work is long."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

_SILENT_SECONDS = 2.0


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[float, int], None] | None]:
    """A callback ``(done, total)`` that draws a bar once the work has taken two seconds.

    None where there is nobody to look at it.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("measuring"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=None)
    appear = threading.Timer(_SILENT_SECONDS, bar.start)  # until then not even the cursor is hidden
    appear.daemon = True
    appear.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        appear.cancel()
        appear.join()
        if bar.live.is_started:
            bar.stop()
