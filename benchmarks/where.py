"""Where the time of one run over the chain goes, and that of a whole analysis: `python benchmarks/where.py`.

In per cent of CPU time. What compiled programs take in threads of their own is a row of the analysis, which
is done again in a process.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1])]

import jax
from methods import ENTRY_ERROR, STEPS, Case
from rich.console import Console
from rich.table import Table

import gradscope
import gradscope.api
import gradscope.measure.all_values
import gradscope.measure.batch
import gradscope.product_svd.error_estimate
import gradscope.product_svd.graded_chain
import gradscope.product_svd.graded_lu
import gradscope.product_svd.steps
from gradscope.linearize.cell_chain import CellChain
from gradscope.linearize.sequence import Linearized
from gradscope.measure import programs
from gradscope.product_svd.error_estimate import GROUPED, Run
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.plain_product import PlainProducts

# What threads of their own take.
PROGRAMS = "full chain and paths: programs"
# What a part is called, what holds its function, and the name of that.
Parts = tuple[tuple[str, Any, str], ...]
RUN: Parts = (
    ("form the step", gradscope.product_svd.steps.Steps, "parts"),
    ("Y times the step", gradscope.product_svd.steps, "multiplied"),
    ("LU", gradscope.product_svd.graded_lu, "dgetrf"),
    ("N times X", gradscope.product_svd.graded_lu.Factors, "times"),
    ("L in the order of the states", gradscope.product_svd.graded_lu.Factors, "lower"),
    ("finish: QR and Jacobi", gradscope.product_svd.error_estimate, "decomposed"),
    ("norm by lag", LagNorm, "__call__"),
)
ANALYSIS: Parts = (
    ("trajectory, Jacobians", Linearized, "segment"),
    ("full chain and paths: around programs", gradscope.measure.batch, "by_programs"),
    ("full chain and paths: by the host", gradscope.measure.all_values, "spectrum"),
    ("largest gain", gradscope.measure.all_values, "log10_largest_gain"),
    ("shares", gradscope.measure.all_values, "shares"),
    ("without each path: form the steps", CellChain, "_but_one"),
    ("without each path: multiply", PlainProducts, "times"),
    ("without each path: norms", PlainProducts, "_measure"),
    ("report", gradscope.api, "_concluded"),
)


class Clock:
    """CPU seconds of this thread by part; what one part calls of another counts for the other."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.open: list[str] = []
        self.since = time.thread_time()

    def turn(self, name: str | None) -> None:
        """From here on ``name`` is at work, or whoever was before."""
        now = time.thread_time()
        self.spent[self.open[-1] if self.open else "the rest"] += now - self.since
        self.since = now
        if name is None:
            self.open.pop()
        else:
            self.open.append(name)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed as ``name``."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.turn(name)
            try:
                return function(*arguments, **options)
            finally:
                self.turn(None)

        return timed


def main() -> None:
    """Print a table for a run and one for an analysis, a column for each case."""
    jax.config.update("jax_enable_x64", True)
    cases = [Case.of("lstm", 64), Case.of("lstm", 128), Case.of("lstm", 256)]
    cases.append(Case.of("rnn", 256, init="gaussian", gain=1.5))
    table_of("one run", RUN, {case.name: partial(one_run, case) for case in cases})
    with mock.patch.object(programs, "PROGRAM", 0):  # those that save anything are compiled
        sizes = {f"LSTM {hidden}": partial(analysis, hidden) for hidden in (64, 128)}
        table_of("an analysis, again", ANALYSIS, sizes)


def table_of(what: str, parts: Parts, runs: dict[str, Callable[[], Callable[[], Any]]]) -> None:
    """Print what each part takes of the time; runs : each prepares what is timed."""
    columns = [spent(run(), parts) for run in runs.values()]
    table = Table(f"per cent of {what}", *runs)
    for part in (*[PROGRAMS] * (parts is ANALYSIS), *(name for name, *_ in parts), "the rest"):
        table.add_row(part, *(f"{100 * max(0.0, one[part] / sum(one.values())):.0f}" for one in columns))
    table.add_row("CPU seconds", *(f"{sum(one.values()):.2f}" for one in columns))
    Console(width=110).print(table)


def one_run(case: Case) -> Callable[[], Any]:
    """A run with the norm at every lag."""
    steps, _ = gradscope.product_svd.steps.checked(case.jacobians)
    return lambda: Run(steps, reset=True, rounded=ENTRY_ERROR, grouped=GROUPED, lag_norm=LagNorm())


def analysis(hidden: int) -> Callable[[], Any]:
    """A default analysis, once all is compiled."""
    run = partial(gradscope.analyze, hidden=hidden, steps=STEPS)
    run()
    run()
    return run


def spent(run: Callable[[], Any], parts: Parts) -> Counter[str]:
    """CPU seconds of each part of a run."""
    clock = Clock()
    saved = [(owner, name, getattr(owner, name)) for _, owner, name in parts]
    for (label, owner, name), (*_, function) in zip(parts, saved, strict=True):
        setattr(owner, name, clock.around(label, function))
    began = time.process_time()
    try:
        clock.turn("the rest")
        clock.spent.clear()
        run()
        clock.turn(None)
    finally:
        for owner, name, function in saved:
            setattr(owner, name, function)
    clock.spent[PROGRAMS] = time.process_time() - began - sum(clock.spent.values())
    return clock.spent


if __name__ == "__main__":
    main()
