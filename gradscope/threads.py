"""One BLAS thread per caller, and how many callers: our parallelism is over chains."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_limit = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within, NumPy's and SciPy's BLAS use one thread; may be entered from many threads, and again.

    The two bring a thread pool each, and both wait by spinning: with more threads than one the
    graded chain of m = 128 on two cores took 15 times as long.
    """
    global _inside, _limit
    with _lock:
        if _inside == 0:
            _limit = ThreadpoolController().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _limit is not None:
                _limit.restore_original_limits()


def cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
