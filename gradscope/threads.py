"""One BLAS thread per caller, and how many callers: our parallelism is over chains."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

# What OpenBLAS's kernels for 512-bit vectors use.
_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def prepare_blas() -> None:
    """Settings that OpenBLAS reads once: call it before the first import of NumPy. The user's own win.

    On AMD processors with AVX-512 it takes its 256-bit kernels unless told otherwise; with the others a
    product took 0.6 times as long (m = 256 and 512, EPYC 9005).
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "OPENBLAS_CORETYPE" not in os.environ and _amd_with_avx512():
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"


def _amd_with_avx512() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            first = file.read(8192)
    except OSError:
        return False
    flags = next((line for line in first.splitlines() if line.startswith("flags")), "")
    return "AuthenticAMD" in first and set(flags.split()) >= _AVX512


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
