"""Accuracy of every singular value against exact arithmetic: `python benchmarks/accuracy.py`.

Exit code 1 if any chain misses max(1e-11, 4 eps conditioning), its exact zeros, or its estimate.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import numpy as np
from oracles.chains import CHAINS
from oracles.reference import Reference, conditioning, reference
from rich.console import Console
from rich.table import Table

from gradscope.product_svd.spectrum import spectrum

EPS = np.finfo(float).eps
SIZES = {"jordan": [(8, 200), (16, 200)], "tanh": [(16, 200), (48, 100)], "gru": [(16, 200), (48, 100)]}
# Ranges of more than a thousand decades take the reference long.
SHORT = {"row-scaled": (16, 60), "column-scaled": (16, 60), "both-scaled": (12, 60)}
SHORT |= {"lstm f~1 i~0 o~1": (16, 60)}


def main() -> int:
    """Print the table; 1 if a row fails."""
    # rich cuts columns to 80 when piped; numbers must not be cut.
    console = Console(width=150)
    table = Table(title="Relative error of sigma, largest over all values")
    for column in ("chain", "m", "T", "conditioning", "error", "allowed", "log10_error"):
        table.add_column(column, justify="left" if column == "chain" else "right")
    for column in ("estimate / true", "ms", "product + SVD", "QR diagonal", ""):
        table.add_column(column, justify="right")
    failed = 0
    for name in CHAINS:
        for m, steps in SIZES.get(name, [SHORT.get(name, (16, 200))]):
            cells, good = row(name, m, steps)
            failed += not good
            table.add_row(*cells, "pass" if good else "FAIL")
    console.print(table)
    console.print(f"{table.row_count - failed} of {table.row_count} pass")
    return 1 if failed else 0


def row(name: str, m: int, steps: int) -> tuple[list[str], bool]:
    """Cells of one chain, and whether it passes."""
    chain = CHAINS[name](m, steps, 0)
    true = reference(chain, vectors=True)
    rank = m - true.exact_zeros
    started = time.perf_counter()
    found = spectrum(chain)
    elapsed = time.perf_counter() - started
    values = found.log10_singular_values
    condition = conditioning(chain, true)
    allowed = np.maximum(1e-11, 4 * EPS * condition)
    cells = [name, str(m), str(steps), f"{condition.max():.1e}"]
    if found.exact_zeros != true.exact_zeros:
        zeros = f"{found.exact_zeros} zeros, not {true.exact_zeros}"
        return [*cells, zeros, "", "", "", "", "", ""], False
    errors = np.abs(true.log10_errors(values[:rank]))
    ulps = np.spacing(np.abs(values[:rank]))
    ratio = found.log10_error / max(errors.max(), EPS)
    relative = errors * np.log(10)
    worst = int(np.argmax(relative / allowed))
    good = bool(np.all(relative - ulps * np.log(10) <= allowed)) and ratio >= 0.1
    cells += [f"{relative.max():.1e}", f"{allowed[worst]:.1e}", f"{found.log10_error:.1e}", f"{ratio:.1f}"]
    cells += [f"{1000 * elapsed:.0f}", *others(chain, true, rank)]
    return cells, good


def others(chain: np.ndarray, true: Reference, rank: int) -> list[str]:
    """What the two usual methods make of the same chain."""
    return [worst(method(chain)[:rank], true) for method in (naive, benettin)]


def worst(values: np.ndarray, true: Reference) -> str:
    """Largest relative error of the values (log10), in words where it is decades."""
    if not np.isfinite(values).all():
        return "lost"
    error = np.abs(true.log10_errors(values)).max()
    return f"{np.expm1(error * np.log(10)):.0e}" if error < 3 else f"{error:.0f} decades"


def naive(chain: np.ndarray) -> np.ndarray:
    """log10 of the singular values of the float64 product."""
    product = np.eye(chain.shape[1])
    with np.errstate(all="ignore"):
        for a in chain:
            product = a @ product
        if not np.isfinite(product).all():
            return np.full(len(product), np.nan)
        return np.log10(np.linalg.svd(product)[1])


def benettin(chain: np.ndarray) -> np.ndarray:
    """log10 |diagonal of R| summed along the QR chain: the usual Lyapunov estimate."""
    q, total = np.eye(chain.shape[1]), np.zeros(chain.shape[1])
    with np.errstate(divide="ignore"):
        for a in chain:
            q, r = np.linalg.qr(a @ q)
            total += np.log10(np.abs(np.diag(r)))
    return -np.sort(-total)


if __name__ == "__main__":
    sys.exit(main())
