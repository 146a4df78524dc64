"""Top singular values without Jacobians: time against the plain product, growth with the size, memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # beside XLA's pool
sys.path[:0] = [str(Path(__file__).parents[1])]

import jax
import numpy as np
from methods import ENTRY_ERROR, STEPS, Case, plain
from processes import run as run_process

from gradscope.linearize.system import precise
from gradscope.linearize.tangent_chain import TangentChain
from gradscope.linearize.tangents import tangents
from gradscope.linearize.trajectory import Segments, Spread, Trajectory
from gradscope.problem.problem import make_problem
from gradscope.product_svd.spectrum import top_spectra
from gradscope.settings import Settings

TOP = 8


def top_of_full_chain(
    hidden: int, steps: int, dtype: str = "float64", by_lag: bool = False
) -> Callable[[], Any]:
    """The top values of the full chain of an LSTM, forward pass and error estimate included."""
    problem = make_problem(Settings(hidden=hidden, steps=steps, dtype=dtype, top=TOP))
    cell = problem.system.cell

    def run() -> Any:
        with precise(dtype):
            segments = Segments.cover(steps, 8 * 16 * hidden)
            spread = Spread((jax.devices()[0],))
            trajectory = Trajectory(problem.system, segments, spread)
            sweeps = TangentChain(trajectory, tangents(cell, cell.paths), 1, dtype)
            return top_spectra(sweeps, TOP, by_lag=by_lag, floor=-3.0, entry_error=ENTRY_ERROR)[0]

    return run


def seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """Least of several runs; the first compiles."""
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def ratio() -> float:
    """Top 8 at m = 512 against the plain product."""
    base = seconds(plain(Case.of("lstm", 256)))
    return seconds(top_of_full_chain(256, STEPS)) / base


def growth() -> float:
    """Time of one pass with a block at hidden 4096 over that at 1024; n^2 would be 16."""
    return one_pass(4096) / one_pass(1024)


def one_pass(hidden: int, steps: int = 20) -> float:
    """Seconds of a forward and a backward pass with 16 columns, the slopes at hand."""
    problem = make_problem(Settings(hidden=hidden, steps=steps, top=TOP))
    cell = problem.system.cell
    with precise("float64"):
        segments = Segments.cover(steps, 8)
        spread = Spread((jax.devices()[0],))
        trajectory = Trajectory(problem.system, segments, spread)
        sweeps = TangentChain(trajectory, tangents(cell, cell.paths), 1, "float64")
        block = np.linalg.qr(np.random.default_rng(0).normal(size=(2 * hidden, 16)))[0][None]
        ignore = lambda factors: None  # noqa: E731
        return seconds(lambda: sweeps.backward(sweeps.forward(block, 8, ignore), 8, ignore), 3)


def largest() -> float:
    """Peak memory in GB of the top 8 of the full chain at hidden 4096, T = 100."""
    return run_process([sys.executable, __file__, "4096", "100"])[1]


if __name__ == "__main__":
    print(top_of_full_chain(int(sys.argv[1]), int(sys.argv[2]))().log10_singular_values)
