"""LAPACK's preconditioned Jacobi SVD, called without the interpreter's lock: SciPy's own wrapper holds it."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.lapack import address, dgejsv, dgetrf


def gejsv(a: Array, *, vectors: bool = True) -> tuple[Array, Array | None, Array | None]:
    """Singular values (n,) of a (m, n), u (m, n) and v (n, n) of a = u diag v^T, where they are wanted.

    Drmac and Veselic, New fast and accurate Jacobi SVD algorithm (2008). The condition is not tested (joba C)
    and tiny columns are kept (jobr N).
    """
    a = np.array(a, np.float64, order="F")
    m, n = a.shape
    values, u = np.empty(n), np.empty((m, n) if vectors else (1, 1), order="F")
    v = np.empty((n, n) if vectors else (1, 1), order="F")
    work, iwork = np.empty(max(2 * m + n, 6 * n + 2 * n * n, 7)), np.empty(m + 3 * n, np.int32)
    info = ctypes.c_int()
    jobs = (b"C", *((b"U", b"V") if vectors else (b"N", b"N")), b"N", b"N", b"N")
    arrays: list[Any] = [m, n, a, len(a), values, u, len(u), v, len(v), work, len(work), iwork]
    _dgejsv()(*jobs, *(_reference(one) for one in arrays), ctypes.byref(info))
    if info.value != 0:
        raise ArithmeticError(f"dgejsv did not converge: info {info.value}")
    return values * (work[0] / work[1]), *((u, v) if vectors else (None, None))


def _reference(value: Any) -> Any:
    if isinstance(value, int):
        return ctypes.byref(ctypes.c_int(value))
    return ctypes.c_void_p(value.ctypes.data)


@cache
def _dgejsv() -> Any:
    # A LAPACK of 64-bit integers would write beyond what it is given.
    assert dgetrf(np.eye(1))[1].dtype == np.int32
    return ctypes.CFUNCTYPE(None, *[ctypes.c_char_p] * 6, *[ctypes.c_void_p] * 13)(address(dgejsv))
