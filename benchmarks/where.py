"""Where the time of one run over the chain goes, in per cent: `python benchmarks/where.py`."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1])]

import jax
from methods import ENTRY_ERROR, Case
from rich.console import Console
from rich.table import Table

import gradscope.product_svd.error_estimate
import gradscope.product_svd.graded_chain
import gradscope.product_svd.graded_lu
import gradscope.product_svd.steps
from gradscope.product_svd.error_estimate import GROUPED, Run
from gradscope.product_svd.norm_by_lag import LagNorm

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("form the step", gradscope.product_svd.steps.Steps, "parts"),
    ("Y times the step", gradscope.product_svd.steps, "multiplied"),
    ("LU", gradscope.product_svd.graded_lu, "dgetrf"),
    ("N times X", gradscope.product_svd.graded_lu.Factors, "times"),
    ("L in the order of the states", gradscope.product_svd.graded_lu.Factors, "lower"),
    ("finish: QR and Jacobi", gradscope.product_svd.error_estimate, "decomposed"),
    ("norm by lag", LagNorm, "__call__"),
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
    """Print one column per case."""
    jax.config.update("jax_enable_x64", True)
    cases = [Case.of("lstm", 64), Case.of("lstm", 128), Case.of("lstm", 256)]
    cases.append(Case.of("rnn", 256, init="gaussian", gain=1.5))
    columns = [shares(case) for case in cases]
    table = Table("per cent of one run", *(case.name for case in cases))
    for part in (*(name for name, *_ in PARTS), "the rest"):
        table.add_row(part, *(f"{100 * column[part]:.0f}" for column in columns))
    Console(width=110).print(table)


def shares(case: Case) -> dict[str, float]:
    """The part that each has in the time of a run with the norm at every lag."""
    steps, _ = gradscope.product_svd.steps.checked(case.jacobians)
    clock = Clock()
    saved = [(owner, name, getattr(owner, name)) for _, owner, name in PARTS]
    for (label, owner, name), (*_, function) in zip(PARTS, saved, strict=True):
        setattr(owner, name, clock.around(label, function))
    try:
        clock.turn("the rest")
        clock.spent.clear()
        Run(steps, reset=True, rounded=ENTRY_ERROR, grouped=GROUPED, lag_norm=LagNorm())
        clock.turn(None)
    finally:
        for owner, name, function in saved:
            setattr(owner, name, function)
    total = sum(clock.spent.values())
    return {name: seconds / total for name, seconds in clock.spent.items()} | {
        name: clock.spent[name] / total for name, *_ in PARTS
    }


if __name__ == "__main__":
    main()
