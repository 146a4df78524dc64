"""How long gradscope takes, as ratios in one run: `python benchmarks/speed.py [--only ROW] [--quick]`.

First every target with the figure measured, error estimates included: of values as a ratio to the plain
product (a jitted scan of A_t @ P on the same matrices in the same process, compile time excluded), of
whole processes to what they cannot do without. Then every method on LSTMs of growing size, and how many
of the singular values are right. --only prints the targets that are named, alone; --long adds larger LSTMs
and the million-step runs (about twenty minutes), --quick leaves out what takes more than a few seconds.
Missed targets are printed as such, with what is in the way; the exit code is 0 all the same, for they
depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # beside XLA's pool
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import jax
import numpy as np
import startup
from engine_rows import CPU, ENGINE, Row, device_rows, together
from methods import (
    STEPS,
    Case,
    gradscope_all,
    gradscope_dense,
    naive_jax,
    naive_torch,
    plain,
    product_and_svd,
    qr_lyapunov,
)
from processes import measured
from rich.console import Console
from rich.table import Table

import gradscope
from gradscope.machine import cores
from gradscope.product_svd import error_estimate

METHODS: dict[str, Callable[[Case], Callable[[], Any]]] = {
    "(a) plain product": plain,
    "(b) product + SVD": product_and_svd,
    "(c) naive PyTorch: jacrev, multiply, svdvals": naive_torch,
    "(d) naive JAX: jacrev, multiply, SVD": naive_jax,
    "(e) QR-Lyapunov": qr_lyapunov,
    "gradscope": gradscope_all,
    "gradscope, dense stack": gradscope_dense,
    "gradscope --accuracy fast": lambda case: gradscope_all(case, accuracy="fast"),
    "gradscope with the norm at every lag": lambda case: gradscope_all(case, by_lag=True),
}
# Slower by far than the rest: once is enough.
ONCE = {"(c) naive PyTorch: jacrev, multiply, svdvals"}
REPEATS = 3
# Among the rows of the engines.
TOLD = {("LSTM", "full accuracy")}
# What is in the way where a target is missed, by how its name begins; figures are those of where.py.
WHY = {
    "all values": "All values: beside the product with the step (m^3 operations, 2 m^3 of a dense one) a "
    "pass has an LU of 2/3 m^3 at half the speed of a product and N X of up to 2 m^3; the error is another.",
    "norm at every lag": "Norm at every lag: twenty products of a matrix with a vector for every step, and "
    "at 64 states as much again for operations so short that to begin one is most of it (where.py "
    "--operations).",
    "CPU time, compiled": "Compiled: XLA's LU and triangular products on a CPU are slower than LAPACK's from "
    "200 states on; the host engine takes these chains.",
    "whole LSTM": "Whole analysis: two thirds of the CPU time are the programs of the full chain and the "
    "paths, each with a run on changed entries; most of the rest the chains without each path, five "
    "products of all states with norms at every lag (where.py).",
    "gradscope.analyze again": "Again: as the whole analysis.",
    "three layers": "Three layers: two fifths are the full chain of 1536 states, factored at every step in "
    "two runs, an eighth each the layers' full chains and the blocks between them (stacks.py --chains).",
    "three bidirectional": "Three bidirectional layers: half are the stacks' full chains and blocks, "
    "vectors that go to and fro through all steps, a third the layers (stacks.py --chains).",
    "top 8 with lags": "Top 8 with lags: the shorter a lag, the closer its values and the more passes it "
    "takes; few columns multiply at a fraction of the speed of the plain product.",
    "--only verdict": "Verdict: imports, and forming and multiplying the 1600 steps (where.py --process).",
    "error in a thread": "Error in a thread: limited by the cores, see the line on the machine.",
    "batch of 64": "Batch of 64: a sequence's programs fill both cores already.",
}
# The same on an accelerator; figures are those of kernels.py.
WHY_ON_DEVICE = {
    "all values": "All values: half to two thirds of what kernels take is cuSOLVER's LU, a panel at a time; "
    "as much again or more is the finish of every pass on the host.",
    "norm at every lag": "Norm at every lag: operations on vectors, each a kernel that is begun and done in "
    "some microseconds.",
    "gradscope.analyze again": "Again: kernels are a ninth; the rest is the host's, a third of it the chains "
    "without each path.",
    "top 8 with lags": "Top 8 with lags: kernels are a quarter, products with the weights; the rest are "
    "spaces of the lags on the host, and columns that go to and fro.",
    "batch of 64": "Batch of 64: steps of every pass are loaded, and passes finished, on the host.",
}
# rich cuts columns to 80 when piped; numbers must not be cut.
CONSOLE = Console(width=132)


def main() -> None:
    """Print both tables."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--long", action="store_true", help="the million-step runs too")
    arguments.add_argument("--quick", action="store_true", help="small sizes only")
    arguments.add_argument(
        "--device", action="store_true", help="only what an accelerator is for, in about two minutes"
    )
    arguments.add_argument(
        "--only", nargs="+", choices=ROWS, metavar="ROW", help=f"these targets alone: {', '.join(ROWS)}"
    )
    options = arguments.parse_args()
    jax.config.update("jax_enable_x64", True)
    CONSOLE.print(machine())
    if options.device:
        table_of(device_rows(90))
        return
    every = [name for name in ROWS if name in QUICK or not options.quick]
    every = [name for name in every if name not in LONG or options.long]
    table_of(row for name in options.only or every for row in ROWS[name]())
    if options.only:
        return
    startup.main()
    for hidden in (16, 64, 128, 256)[: 4 if options.long else 2 if options.quick else 3]:
        methods(hidden)


def machine() -> str:
    """What the figures were measured on. Two virtual cores may be one that is shared."""
    from threadpoolctl import threadpool_info

    kernels = {str(one.get("architecture")) for one in threadpool_info() if one["user_api"] == "blas"}
    one, every = rate(1), rate(cores())
    return (
        f"JAX {jax.__version__} on {jax.devices()[0].device_kind}, OpenBLAS for {', '.join(kernels)}; "
        f"one thread multiplies at {one:.0f} GFLOP/s, {cores()} threads at {every / one:.1f} times that; "
        f"float64, T = {STEPS}"
    )


def rate(threads: int) -> float:
    """GFLOP/s of matrix products of 512 x 512 in so many threads."""
    a = np.random.default_rng(0).normal(size=(512, 512))
    count = 40

    def work(_: int) -> None:
        out = np.empty_like(a)
        for _ in range(count):
            np.matmul(a, a, out=out)

    with ThreadPoolExecutor(threads) as pool:
        seconds, _ = timed(lambda: list(pool.map(work, range(threads))), 3)
    return threads * count * 2 * 512**3 / seconds / 1e9


def methods(hidden: int) -> None:
    """Print the table of all methods on an LSTM, with their ratios to the plain product."""
    case = Case.of("lstm", hidden)
    truth, by = reference(case)
    table = Table(
        "method", "time / plain", f"of {2 * hidden} values right to 1e-6", "largest error (decades)"
    )
    base = best(plain(case))
    for name, make in METHODS.items():
        run = make(case)
        if name not in ONCE:
            run()  # compiles
        seconds, found = timed(run, 1 if name in ONCE else REPEATS)
        base = min(base, best(plain(case), 2))  # the machine may have been busy
        table.add_row(
            name, f"{seconds / base:.2f}", *([] if name.startswith("(a)") else accuracy(found, truth))
        )
    CONSOLE.print(
        f"\nLSTM, hidden {hidden} (m = {2 * hidden}); plain product {1000 * base:.1f} ms; errors against {by}"
    )
    CONSOLE.print(table)


def reference(case: Case) -> tuple[np.ndarray, str]:
    """log10 of all singular values, in exact arithmetic where that ends in this lifetime."""
    if len(case.dense[0]) <= 32:
        from oracles.reference import reference as exact

        return np.array([float(value) for value in exact(case.dense).log10()]), "exact integers"
    found = gradscope.spectrum(case.dense)
    return found.log10_singular_values, f"gradscope.spectrum (its own estimate: {found.log10_error:.0e})"


def accuracy(found: np.ndarray, truth: np.ndarray) -> tuple[str, str]:
    """How many values are right, and the largest error."""
    with np.errstate(invalid="ignore"):
        error = np.abs(found - truth)
    good = int(np.count_nonzero(error <= 1e-6 / np.log(10)))
    largest = float(np.nan_to_num(error, nan=np.inf).max())
    return str(good), "infinite" if np.isinf(largest) else f"{largest:.0e}"


def timed(run: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, Any]:
    """Least seconds of several runs, and what the last returned."""
    least = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        found = run()
        least = min(least, time.perf_counter() - start)
    return least, found


def best(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Least seconds of several runs; the first compiles."""
    run()
    return timed(run, repeats)[0]


def table_of(every: Iterable[Row]) -> None:
    """Print every target with what was measured, each as it is found too."""
    because, reasons = WHY if CPU else WHY_ON_DEVICE, list[str]()
    table = Table("target", "measured", "at most", "")
    for name, value, goal, digits in every:
        met = value <= goal if goal > 0 else value >= -goal
        limit = f"<= {goal:g}" if goal > 0 else f">= {-goal:g}"
        table.add_row(name, f"{value:.{digits}f}", limit, "ok" if met else "MISSED")
        CONSOLE.print(f"measured: {name}: {value:.{digits}f}", style="dim")
        reasons += [] if met else [why for start, why in because.items() if name.startswith(start)]
    CONSOLE.print(table)
    for why in dict.fromkeys(reasons):
        CONSOLE.print(why)


def host_rows(m: int) -> Iterator[Row]:
    """Fast accuracy, and a tanh RNN, which has no structure to use: the dense product."""
    cells: dict[str, dict[str, Any]] = {"LSTM": {"cell": "lstm"}}
    cells["tanh RNN"] = {"cell": "rnn", "init": "gaussian", "gain": 1.5}
    accuracies = {"full accuracy": (5, {}), "--accuracy fast": (2, {"accuracy": "fast"})}
    for name, options in cells.items():
        case = Case.of(hidden=m // 2 if name == "LSTM" else m, **options)
        asked = {accuracy: one for accuracy, one in accuracies.items() if (name, accuracy) not in TOLD}
        runs = [gradscope_all(case, **more) for _, more in asked.values()]
        *taken, scan = together([*runs, plain(case)], 2)
        for (accuracy, (limit, _)), seconds in zip(asked.items(), taken, strict=True):
            yield f"all values, {accuracy}, {name} m = {m} / plain product", seconds / scan, limit, 1


def thread_rows() -> Iterator[Row]:
    """The run on changed entries beside the other."""
    rnn, lstm = Case.of("rnn", 256, init="gaussian", gain=1.5), Case.of("lstm", 64)
    yield "error in a thread, fast, tanh RNN m = 256: 1 core / 2 cores", in_a_thread(rnn, "fast"), -1.6, 2
    # It has none: is that right?
    yield "error in a thread all the same, LSTM m = 128: 1 core / 2 cores", in_a_thread(lstm, "full"), 1.0, 2


def in_a_thread(case: Case, accuracy: str) -> float:
    """How much quicker values with their error are on two cores than on one."""
    with mock.patch.object(error_estimate, "WORTH_A_THREAD", 0):
        one, two = (best(gradscope_all(case, accuracy=accuracy, workers=n), 3) for n in (1, 2))
    return one / two


def top_rows() -> Iterator[Row]:
    """Top singular values without Jacobians."""
    from topk import growth, largest, ratio

    yield "top 8, LSTM m = 512 / plain product", ratio(), 0.4, 2
    yield "top 8: time at hidden 4096 / hidden 1024, T = 20 (n^2: 16)", growth(), 20, 1
    yield "top 8, hidden 4096, T = 100: peak memory, GB", largest(), 24, 1


def long_rows() -> Iterator[Row]:
    """A million steps: memory above that of an interpreter that has imported jax."""
    for name, arguments in (
        ("T = 1,000,000, hidden 64, --top 4", ["--steps", "1000000", "--top", "4"]),
        ("T = 100,000, hidden 64, all values", ["--steps", "100000"]),
    ):
        seconds, gigabytes = measured(["analyze", *arguments, "--json"])
        CONSOLE.print(f"{name}: {seconds:.0f} s")
        yield f"{name}: memory above the interpreter's, GB", gigabytes, 2, 2


# Every target by the name that it is asked for by: what, figure, limit (negative: at least), digits.
ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    **ENGINE,
    **{f"host-{m}": partial(host_rows, m) for m in (256, 512)},
    "threads": thread_rows,
    "top": top_rows,
    "long": long_rows,
}
QUICK = {"values-64", "values-128", "analysis-64", "programs", "engines", "host-256", "threads"}
LONG = {"long"}

if __name__ == "__main__":
    main()
