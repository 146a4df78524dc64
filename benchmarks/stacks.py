"""A stack of two LSTMs: its whole analysis as a ratio to all singular values of the same chain, dense."""

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

from gradscope.api import analyze_problems
from gradscope.cells import find
from gradscope.checkpoints import Model
from gradscope.checkpoints.layer import Layer
from gradscope.linearize.sequence import Linearized
from gradscope.problem.layers import make_problems
from gradscope.problem.problem import make_problem
from gradscope.product_svd.spectrum import spectrum
from gradscope.settings import Settings

STEPS, INPUT, REPEATS = 200, 32, 3


def model(hidden: int) -> Model:
    """Two LSTMs as PyTorch initialises them, the second on the outputs of the first."""
    layers = []
    for number, features in enumerate((INPUT, hidden)):
        fresh = make_problem(Settings(hidden=hidden, input_size=features, seed=number))
        below = (f"l{number - 1}",) if number else ()
        weights = fresh.system.parameters
        layers.append(Layer(find("lstm"), weights, f"l{number}", np.zeros(2 * hidden), below=below))
    return Model(tuple(layers), ("l0", "l1"))


def seconds(run: Callable[[], Any]) -> float:
    """The best of a few runs, after one that compiles."""
    run()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    """Print a line for each hidden size."""
    for hidden in (64, 128):
        problems = make_problems(Settings(steps=STEPS), model(hidden), jax.local_devices())
        chain = Linearized(problems.stacks[0].problem.system, 0, jax.local_devices()[0])
        dense = np.concatenate([np.stack(list(chain.segment(i))) for i in range(len(chain.starts))])
        whole = seconds(lambda problems=problems: analyze_problems(problems))
        values = seconds(lambda dense=dense: spectrum(dense, by_lag=True))
        print(
            f"two LSTMs of hidden {hidden} (m = {dense.shape[1]}), T = {STEPS}: whole analysis / values and "
            f"lags of the dense chain {whole / values:.2f} ({whole:.2f} s / {values:.2f} s)"
        )


if __name__ == "__main__":
    main()
