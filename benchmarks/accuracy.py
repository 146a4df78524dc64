"""Accuracy of every singular value against exact arithmetic: `python benchmarks/accuracy.py`.

Exit code 1 if any chain misses max(1e-11, 4 eps conditioning), its exact zeros, or its estimate. Where
there is no python-flint: `--save FILE` where there is, `--truth FILE` here.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import numpy as np
from oracles.arrays import WholeSteps
from oracles.chains import CHAINS
from rich.console import Console
from rich.table import Table

from gradscope.product_svd.spectrum import Spectrum, spectrum

EPS = np.finfo(float).eps
SIZES = {"jordan": [(8, 200), (16, 200)], "tanh": [(16, 200), (48, 100)], "gru": [(16, 200), (48, 100)]}
# Ranges of more than a thousand decades take the reference long.
SHORT = {"row-scaled": (16, 60), "column-scaled": (16, 60), "both-scaled": (12, 60)}
SHORT |= {"lstm f~1 i~0 o~1": (16, 60)}


@dataclass(frozen=True)
class Truth:
    """A chain and what exact arithmetic says of it: log10 of its values as high + low, and what is below.

    zeros : exact ones; condition : of every value that is none.
    """

    chain: np.ndarray
    high: np.ndarray
    low: np.ndarray
    condition: np.ndarray

    @classmethod
    def of(cls, chain: np.ndarray) -> Truth:
        """By thousands of bits."""
        from oracles.reference import conditioning, reference

        true = reference(chain, vectors=True)
        high = np.array([float(value) for value in true.log10()])
        return cls(chain, high, -true.log10_errors(high), conditioning(chain, true))

    @property
    def zeros(self) -> int:
        """Values that are exactly zero."""
        return self.chain.shape[1] - len(self.high)

    def errors(self, log10: np.ndarray) -> np.ndarray:
        """Computed minus true."""
        return (log10 - self.high) - self.low


def main() -> int:
    """Print the table; 1 if a row fails."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--save", metavar="FILE", help="write what exact arithmetic says, and end")
    arguments.add_argument("--truth", metavar="FILE", help="what --save wrote")
    arguments.add_argument(
        "--compiled", action="store_true", help="by the compiled engine, on the device that JAX finds"
    )
    options = arguments.parse_args()
    cases = [(name, *size) for name in CHAINS for size in SIZES.get(name, [SHORT.get(name, (16, 200))])]
    if options.save:
        np.savez_compressed(options.save, **saved(cases))
        return 0
    known = np.load(options.truth) if options.truth else None
    table = empty_table()
    failed = 0
    for name, m, steps in cases:
        truth = Truth.of(CHAINS[name](m, steps, 0)) if known is None else kept(known, name, m)
        cells, good = row(truth, options.compiled)
        failed += not good
        table.add_row(name, *cells, "pass" if good else "FAIL")
    console = Console(width=150)  # rich cuts columns to 80 when piped; numbers must not be cut
    console.print(table)
    console.print(f"{table.row_count - failed} of {table.row_count} pass")
    return 1 if failed else 0


def empty_table() -> Table:
    """Its columns."""
    table = Table(title="Relative error of sigma, largest over all values")
    for column in ("chain", "m", "T", "conditioning", "error", "allowed", "log10_error"):
        table.add_column(column, justify="left" if column == "chain" else "right")
    for column in ("estimate / true", "ms", "product + SVD", "QR diagonal", ""):
        table.add_column(column, justify="right")
    return table


def saved(cases: list[tuple[str, int, int]]) -> dict[str, np.ndarray]:
    """The truth of every case as arrays."""
    found = {}
    for name, m, steps in cases:
        truth = Truth.of(CHAINS[name](m, steps, 0))
        found |= {f"{name}/{m}/{part}": value for part, value in vars(truth).items()}
    return found


def kept(known: Mapping[str, np.ndarray], name: str, m: int) -> Truth:
    """What ``saved`` has of a case."""
    return Truth(*(known[f"{name}/{m}/{part}"] for part in Truth.__dataclass_fields__))


def measured(chain: np.ndarray, compiled: bool) -> Spectrum | None:
    """The spectrum by one engine; None of what the compiled one leaves to the host."""
    if not compiled:
        return spectrum(chain)
    import jax

    from gradscope.compiled_svd.engine import compiled_spectra

    return compiled_spectra([WholeSteps(chain)], jax.devices(), EPS)[0]


def row(truth: Truth, compiled: bool) -> tuple[list[str], bool]:
    """Cells of one chain, and whether it passes."""
    chain = truth.chain
    steps, m, _ = chain.shape
    if compiled:
        measured(chain, compiled)  # compiles
    started = time.perf_counter()
    found = measured(chain, compiled)
    elapsed = time.perf_counter() - started
    condition = truth.condition
    allowed = np.maximum(1e-11, 4 * EPS * condition)
    cells = [str(m), str(steps), f"{condition.max():.1e}"]
    if found is None:
        return [*cells, "left to the host", *[""] * 6], True
    if found.exact_zeros != truth.zeros:
        return [*cells, f"{found.exact_zeros} zeros, not {truth.zeros}", *[""] * 6], False
    values = found.log10_singular_values[: len(truth.high)]
    errors = np.abs(truth.errors(values))
    ulps = np.spacing(np.abs(values))
    ratio = found.log10_error / max(errors.max(), EPS)
    relative = errors * np.log(10)
    worst = int(np.argmax(relative / allowed))
    good = bool(np.all(relative - ulps * np.log(10) <= allowed)) and ratio >= 0.1
    cells += [f"{relative.max():.1e}", f"{allowed[worst]:.1e}", f"{found.log10_error:.1e}", f"{ratio:.1f}"]
    cells += [f"{1000 * elapsed:.0f}", *others(truth)]
    return cells, good


def others(truth: Truth) -> list[str]:
    """What the two usual methods make of the same chain."""
    return [worst(method(truth.chain)[: len(truth.high)], truth) for method in (naive, benettin)]


def worst(values: np.ndarray, truth: Truth) -> str:
    """Largest relative error of the values (log10), in words where it is decades."""
    if not np.isfinite(values).all():
        return "lost"
    error = np.abs(truth.errors(values)).max()
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
