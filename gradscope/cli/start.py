"""The first moment of a process: an interrupt ends it in one line, also while all else is being imported."""

from __future__ import annotations

import gc
import os
import signal
from typing import NoReturn

from gradscope.errors import ExitCode

# How many more objects there are until garbage is looked for again. Python's own number is 700, and each time
# JAX looks for its own too: that took a hundredth of a start.
_OBJECTS = 10_000


def entry() -> NoReturn:
    """The console script: exit with the code of ``main``."""
    gc.set_threshold(_OBJECTS)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the shell ignores it
        signal.signal(signal.SIGINT, _interrupted)
    from gradscope.cli.main import main_and_exit

    main_and_exit()


def _interrupted(*_: object) -> NoReturn:
    """End here and now: an exception could be lost in a callback, or in an import under way."""
    cursor = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
    try:
        os.write(2, f"{cursor}gradscope: interrupted\n".encode())
    finally:
        os._exit(ExitCode.INTERRUPTED)
