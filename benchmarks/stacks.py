"""The analysis of stacks, as a ratio to the values of the same chain, dense; and what its chains take."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # beside XLA's pool
sys.path[:0] = [str(Path(__file__).parents[1])]

import jax
import numpy as np
from engine_rows import stacked

from gradscope.api import analyze_problems
from gradscope.linearize.sequence import Linearized
from gradscope.measure.all_values import JacobianChains
from gradscope.measure.chains import WITHOUT
from gradscope.measure.top_values import TangentChains
from gradscope.problem.layers import make_problems
from gradscope.product_svd.spectrum import spectrum
from gradscope.settings import Settings

STEPS, REPEATS = 200, 3
# Those of the targets of `speed.py`: layers of 256, one upon the other.
LARGE: dict[str, tuple[bool, dict[str, Any]]] = {
    "three layers of 256, 30 steps, all values": (False, {"steps": 30, "top": "all"}),
    "three bidirectional layers of 256, 14 steps, --top 4": (True, {"steps": 14, "top": 4}),
}


def seconds(run: Callable[[], Any]) -> float:
    """The best of a few runs, after one that compiles."""
    run()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def ratios() -> None:
    """Print a line for each hidden size."""
    for hidden in (64, 128):
        problems = make_problems(Settings(steps=STEPS), stacked(2, hidden), jax.local_devices())
        chain = Linearized(problems.stacks[0].problem.system, 0, jax.local_devices()[0])
        dense = np.concatenate([np.stack(list(chain.segment(i))) for i in range(len(chain.starts))])
        whole = seconds(lambda problems=problems: analyze_problems(problems))
        values = seconds(lambda dense=dense: spectrum(dense, by_lag=True))
        print(
            f"two LSTMs of hidden {hidden} (m = {dense.shape[1]}), T = {STEPS}: whole analysis / values and "
            f"lags of the dense chain {whole / values:.2f} ({whole:.2f} s / {values:.2f} s)"
        )


def by_chain() -> None:
    """Print what each kind of chain takes of the cores, of the first analysis in this process."""
    for what, (bidirectional, settings) in LARGE.items():
        problems = make_problems(Settings(**settings), stacked(3, 256, bidirectional), jax.local_devices())
        spent, began = Counter[str](), time.process_time()
        with Counted(spent):
            analyze_problems(problems)
        whole = time.process_time() - began
        spent["the rest"] = whole - sum(spent.values())
        each = ", ".join(f"{name} {taken:.1f}" for name, taken in spent.items())
        print(f"{what}, CPU seconds: {whole:.1f}: {each}", flush=True)


class Counted:
    """While it is entered, CPU seconds of every kind of chain are added up in ``spent``."""

    def __init__(self, spent: Counter[str]) -> None:
        self._spent = spent
        self._methods = {
            (kind, name): getattr(kind, name)
            for kind in (JacobianChains, TangentChains)
            for name in ("spectra", "without", "shares")
        }

    def __enter__(self) -> None:
        for (kind, name), method in self._methods.items():
            setattr(kind, name, self._around(method, name))

    def __exit__(self, *_: object) -> None:
        for (kind, name), method in self._methods.items():
            setattr(kind, name, method)

    def _around(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(chains: Any, *arguments: Any) -> Any:
            began = time.process_time()
            try:
                return method(chains, *arguments)
            finally:
                self._spent[_kind(chains, name, arguments)] += time.process_time() - began

        return timed


def _kind(chains: Any, name: str, arguments: tuple[Any, ...]) -> str:
    """Of a layer or the stack, and which chain."""
    of = "of the stack" if any("->" in one for one in chains.names) else "of a layer"
    if name != "spectra":
        return f"{WITHOUT if name == 'without' else name} {of}"
    chain = arguments[0]
    return f"{'full chain' if chain == 'full' else 'block' if '->' in chain else 'path'} {of}"


def main() -> None:
    """One or the other."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--chains", action="store_true", help="what each kind of chain takes, of layers of 256"
    )
    if arguments.parse_args().chains:
        by_chain()
    else:
        ratios()


if __name__ == "__main__":
    main()
