"""Small saturated chains against exact arithmetic: `python benchmarks/small_chains.py --help`.

Jacobians of three units over ten steps: of every value what it is off by beside its estimate, of every lag
its gain, and how many values are counted as zeros that exact arithmetic has.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import jax
import numpy as np
from oracles.reference import reference

from gradscope.cells import find
from gradscope.linearize.cell_chain import split
from gradscope.linearize.jacobians import linearize
from gradscope.linearize.system import precise
from gradscope.product_svd.spectrum import Spectrum, spectrum

CELLS = ("gru", "gru-reset-before", "lstm-cifg", "rnn", "lstm")
WEIGHTS, INPUTS = (3.0, 10.0, 30.0), (0.3, 1.0, 3.0, 10.0)
UNITS, STEPS, BITS = 3, 10, 16384
ENTRY_ERROR = 4 * float(np.finfo(float).eps)
# Decades: a value or a lag that is off by more than this, and than its estimate says, is wrong.
WRONG = 1e-6


def main() -> None:
    """Print which chains are wrong, and how many of each kind."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--chains", type=int, default=250)
    count = arguments.parse_args().chains
    rng, wrong = np.random.default_rng(5), dict.fromkeys(("lags", "values", "zeros"), 0)
    values = lost = 0
    for seed in range(count):
        name = CELLS[seed % len(CELLS)]
        weights, inputs = rng.choice(WEIGHTS), rng.choice(INPUTS)
        chain = saturated(name, weights, inputs, seed)
        found = spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR)
        values, lost = values + chain.shape[1], lost + found.lost
        for kind, off in looked_at(chain, found).items():
            if off:
                wrong[kind] += 1
                print(f"{name}, weights {weights:g}, inputs {inputs:g}, seed {seed}: {kind} {off:.2g}")
    print(f"of {count} chains wrong: " + ", ".join(f"{kind} {number}" for kind, number in wrong.items()))
    print(f"of {values} values lost, which is said: {lost}")


def saturated(name: str, weights: float, inputs: float, seed: int) -> np.ndarray:
    """(T, m, m) Jacobians of a cell on inputs of that size."""
    rng, cell = np.random.default_rng(seed), find(name)
    shapes = cell.shapes(UNITS, UNITS).items()
    parameters = {key: weights * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes}
    given = inputs * rng.normal(size=(STEPS, UNITS))
    with precise("float64"):
        found = jax.device_get(linearize(cell, parameters, given, np.zeros(cell.size(UNITS))))
    steps = split(cell, parameters, found)
    return np.array([steps[t] for t in range(STEPS)])


def looked_at(chain: np.ndarray, found: Spectrum) -> dict[str, float]:
    """By how many decades its lags and its values are off, and how many zeros are none; 0 where right."""
    true = np.array([float(value) for value in reference(chain, bits=BITS).log10()])
    lags = [reference(chain[STEPS - lag :], bits=BITS).log10() for lag in range(1, STEPS + 1)]
    known = int(np.isfinite(found.log10_singular_values).sum())
    values = np.abs(found.log10_singular_values[:known] - np.resize(true, known)).max(initial=0)
    gains = np.array([float(one[0]) if one else -np.inf for one in lags])
    with np.errstate(invalid="ignore"):  # of two gains of 0
        by_lag = np.nanmax(np.abs(found.log10_norm_by_lag - gains), initial=0)
    return {
        "lags": by_lag if by_lag > WRONG else 0.0,
        "values": values if values > max(WRONG, 10 * found.log10_error) else 0.0,
        "zeros": max(0.0, float((found.exact_zeros or 0) - (chain.shape[1] - len(true)))),
    }


if __name__ == "__main__":
    main()
