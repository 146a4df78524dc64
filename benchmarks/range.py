"""Inputs from 1 to 1e6, weights from 1e-3 to 1e3, every cell: does any analysis end without gain and lags?

    python benchmarks/range.py [--cells lstm,gru] [--steps 50,500] [--hidden 6] [--only all] [--done FILE]

A row for each cell and T: how many analyses there were; in how many the gain at every lag that was looked
at is that of python-flint, and in how many it is not (0 is asked for); in how many the gain is zero; how
many ended without the gain or a lag of the full chain (0 is asked for); how many were refused and why (a
state that leaves float64); how many values all of them have, how many of these are zero and how many
lost; and the seconds of the slowest. The oracle: complex steps of the papers' equations in balls of 500
bits at the states of the trajectory, over the last CHECKED steps, which are the lags 1 to CHECKED.
--only : what is measured, "gain" is the full chain's gain and lags alone; --done : a file to note what is
done; what is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import jax
import numpy as np

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE), str(HERE / "tests")]

from oracles.any_exponent import log10_norms, step_of

import gradscope
from gradscope.cells import CELLS, find
from gradscope.linearize.system import System
from gradscope.linearize.trajectory import states_of
from gradscope.settings import Only

INPUTS = (1.0, 30.0, 300.0, 1e4, 1e6)
WEIGHTS = (1e-3, 0.3, 1.0, 30.0, 1e3)
FEATURES = 4
# Lags that are compared: the oracle takes longer than the analysis.
CHECKED = 50
# Decades, beside ten times the estimated error: what rounding leaves of a logarithm, relative.
ROUNDED = 1e-13


def one(cell: str, hidden: int, steps: int, weights: float, size: float, only: Only) -> dict[str, Any]:
    """One analysis: its seconds, what became of its values, whether it is right, and what it lacks."""
    rng = np.random.default_rng(1)
    shapes = find(cell).shapes(hidden, FEATURES)
    arrays = {key: weights * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes.items()}
    inputs = size * rng.normal(size=(1, steps, FEATURES))
    start, found = time.perf_counter(), {"cell": cell, "steps": steps, "weights": weights, "inputs": size}
    with TemporaryDirectory() as folder:
        np.savez(Path(folder, "cell.npz"), **arrays)
        try:
            path = Path(folder, "cell.npz")
            analysis = gradscope.analyze(checkpoint=path, cell=cell, inputs=inputs, only=only)
        except gradscope.InputError as error:
            return found | {"error": str(error)}
    (spectrum,) = analysis.full.spectra
    counts = {
        "values": len(spectrum.log10_singular_values),
        "zeros": spectrum.exact_zeros or 0,
        "lost": spectrum.lost,
    }
    seconds, zero = time.perf_counter() - start, bool(np.isneginf(spectrum.log10_singular_values[0]))
    counts["right"] = right(cell, hidden, arrays, inputs, analysis)
    return found | counts | told(analysis.to_json(all_lags=True), steps, zero) | {"seconds": seconds}


def right(
    cell: str, hidden: int, arrays: dict[str, np.ndarray], inputs: np.ndarray, analysis: gradscope.Analysis
) -> bool | None:
    """Whether the lags that are looked at are those of the oracle; None where states leave float64."""
    start = np.zeros((1, find(cell).size(hidden)))
    states = states_of(System(find(cell), hidden, arrays, inputs, start), jax.devices()[:1])[0]
    if not np.isfinite(states).all():
        return None
    some = slice(-CHECKED, None)
    kept = {name: array for name, array in arrays.items() if name not in ("h0", "c0")}
    expected = log10_norms(step_of(cell), kept, inputs[0, some], states[-CHECKED - 1 :])
    ours, error = analysis.full.by_lag[0, : len(expected)], analysis.full.spectra[0].log10_norm_error
    zero = np.isneginf(expected) | np.isneginf(ours)
    close = np.abs(np.where(zero, 0, ours) - np.where(zero, 0, expected)) <= 10 * error + ROUNDED * (
        1 + np.abs(np.where(zero, 0, expected))
    )
    return bool((np.where(zero, ours == expected, close)).all())


def told(text: str, steps: int, zero: bool) -> dict[str, Any]:
    """What a user reads: strict JSON, its gain (None is zero), verdict, and whether any of it is missing."""
    answer = json.loads(text, parse_constant=_refused)
    (full,) = (chain for chain in answer["chains"] if chain["name"] == "full")
    gain = full["log10_norm"]["median"]
    lacks = [
        gain is None and not zero,
        full["rate"]["median"] is None and not zero,
        full["horizon"]["median"] is None,
        full["by_lag"]["lag"] != list(range(1, steps + 1)) or len(full["by_lag"]["log10_norm"]) != steps,
    ]
    return {"gain": gain, "nothing": zero, "level": answer["verdict"]["level"], "missing": any(lacks)}


def _refused(name: str) -> None:
    raise ValueError(f"{name} is not of JSON")


def sweep(
    cells: Sequence[str], hidden: int, lengths: Sequence[int], only: Only, done: Path | None
) -> Iterator[dict[str, Any]]:
    """All of them; a state beyond float64 (an error that names the step) is an answer too."""
    known = [json.loads(line) for line in done.read_text().splitlines()] if done and done.exists() else []
    keys = {(row["cell"], row["steps"], row["weights"], row["inputs"]): row for row in known}
    for cell, steps, weights, size in itertools.product(cells, lengths, WEIGHTS, INPUTS):
        row = keys.get((cell, steps, weights, size))
        if row is None:
            row = one(cell, hidden, steps, weights, size, only)
            if done:
                with done.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        yield row


def main() -> None:
    """Run the sweep and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--steps", default="50,500")
    parser.add_argument("--hidden", type=int, default=6)
    parser.add_argument("--only", default="all", choices=get_args(Only))
    parser.add_argument("--done", type=Path)
    given = parser.parse_args()
    lengths = [int(steps) for steps in given.steps.split(",")]
    rows = sweep(given.cells.split(","), given.hidden, lengths, given.only, given.done)
    print(
        "| cell | T | analyses | right | wrong | zero | ended early | refused | values | zeros | lost "
        "| slowest, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for (cell, steps), group in itertools.groupby(rows, lambda row: (row["cell"], row["steps"])):
        found = list(group)
        told = [row for row in found if "error" not in row]
        judged = [sum(row["right"] is verdict for row in told) for verdict in (True, False)]
        sums = [sum(row[name] for row in told) for name in ("nothing", "missing", "values", "zeros", "lost")]
        slowest = max((row["seconds"] for row in told), default=0.0)
        refused = [row for row in found if "error" in row]
        print(
            f"| {cell} | {steps} | {len(found)} | {judged[0]} | {judged[1]} | {sums[0]} | {sums[1]} "
            f"| {len(refused)} | {sums[2]} | {sums[3]} | {sums[4]} | {slowest:.1f} |",
            flush=True,
        )
        for row in told:
            if row["right"] is False:
                print(
                    f"  wrong: weights {row['weights']:g}, inputs {row['inputs']:g}: log10 gain {row['gain']}"
                )
        for row in refused:
            print(f"  weights {row['weights']:g}, inputs {row['inputs']:g}: {row['error']}")


if __name__ == "__main__":
    main()
