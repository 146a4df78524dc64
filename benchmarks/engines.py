"""Both engines on small random chains of mixed kinds: `python benchmarks/engines.py --help`.

Every value has to agree within the two estimates, every lag to 1e-10; exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import jax
import numpy as np
from oracles.arrays import WholeSteps, mixed

from gradscope.compiled_svd import passes
from gradscope.compiled_svd.engine import compiled_spectra
from gradscope.product_svd.spectrum import Spectrum, spectrum

ENTRY_ERROR = 4 * float(np.finfo(float).eps)
SIZES = ((3, 12), (6, 32), (12, 24))
# Chains at once.
SOME = 250
WRONG_LAG = 1e-10


def main() -> None:
    """Print how many agree, were left to the host, and do not."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--chains", type=int, default=10_000)
    arguments.add_argument("--first", type=int, default=0, help="leave out so many, to run it in parts")
    arguments.add_argument(
        "--as-accelerator",
        action="store_true",
        help="batches and segments of time as on a GPU, wherever this runs",
    )
    options = arguments.parse_args()
    first, count = options.first, options.first + options.chains
    if options.as_accelerator:
        passes.one_for_each_core = lambda devices: False
    rng, left, wrong, done = np.random.default_rng(0), 0, 0, 0
    seconds = {"compiled": 0.0, "host": 0.0}
    while done < count:
        m, steps = SIZES[done // SOME % len(SIZES)]
        stacks = [mixed(rng, m, steps) for _ in range(min(SOME, count - done))]
        if done < first:  # drawn, so that the others are the same
            stacks = stacks[first - done :]
            done = min(done + SOME, first)
            if not stacks:
                continue
        began = time.perf_counter()
        found = compiled_spectra([WholeSteps(stack) for stack in stacks], jax.devices(), ENTRY_ERROR)
        seconds["compiled"] += time.perf_counter() - began
        for one, stack in zip(found, stacks, strict=True):
            left += one is None
            if one is not None:
                began = time.perf_counter()
                other = spectrum(stack, by_lag=True, entry_error=ENTRY_ERROR)
                seconds["host"] += time.perf_counter() - began
                if apart := difference(one, other):
                    wrong += 1
                    print(f"chain {done} of {m} states, {steps} steps: {apart}")
            done += 1
    print(
        f"{done - first} chains: {done - first - left - wrong} agree, {left} left to the host engine, "
        f"{wrong} do not agree; "
        f"{seconds['compiled']:.0f} s compiled, {seconds['host']:.0f} s host"
    )
    sys.exit(wrong > 0)


def difference(one: Spectrum, other: Spectrum) -> str:
    """What of two spectra is further apart than their estimates say."""
    if one.exact_zeros != other.exact_zeros or one.lost != other.lost:
        return f"{one.exact_zeros} and {other.exact_zeros} zeros"
    apart = np.abs(one.log10_singular_values - other.log10_singular_values).max()
    if not apart <= one.log10_error + other.log10_error:
        return f"values differ by {apart:.1e}, estimates {one.log10_error:.1e} and {other.log10_error:.1e}"
    lags = np.abs(np.subtract(one.log10_norm_by_lag, other.log10_norm_by_lag)).max()
    return f"lags differ by {lags:.1e}" if not lags <= WRONG_LAG else ""


if __name__ == "__main__":
    main()
