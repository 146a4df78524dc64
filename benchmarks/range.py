"""Inputs from 1 to 1e6, weights from 1e-3 to 1e3, every cell: does any analysis end without gain and lags?

    python benchmarks/range.py [--cells lstm,gru] [--steps 50,500] [--hidden 6] [--done FILE]

A row for each cell and T: how many analyses there were, how many ended without the gain or a lag of the full
chain (0 is asked for), how many were refused and why (a state that leaves float64), how many values all of
them have, how many of these are zero and how many lost, and the seconds of the slowest.
--done : a file to note what is done in; what is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import gradscope
from gradscope.cells import CELLS, find

INPUTS = (1.0, 30.0, 300.0, 1e4, 1e6)
WEIGHTS = (1e-3, 0.3, 1.0, 30.0, 1e3)
FEATURES = 4


def one(cell: str, hidden: int, steps: int, weights: float, size: float) -> dict[str, Any]:
    """One analysis: its seconds, what became of its values, and what it lacks."""
    rng = np.random.default_rng(1)
    shapes = find(cell).shapes(hidden, FEATURES)
    arrays = {key: weights * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes.items()}
    inputs = size * rng.normal(size=(1, steps, FEATURES))
    start, found = time.perf_counter(), {"cell": cell, "steps": steps, "weights": weights, "inputs": size}
    with TemporaryDirectory() as folder:
        np.savez(Path(folder, "cell.npz"), **arrays)
        try:
            analysis = gradscope.analyze(checkpoint=Path(folder, "cell.npz"), cell=cell, inputs=inputs)
        except gradscope.InputError as error:
            return found | {"error": str(error)}
    (spectrum,) = analysis.full.spectra
    counts = {
        "values": len(spectrum.log10_singular_values),
        "zeros": spectrum.exact_zeros,
        "lost": spectrum.lost,
    }
    seconds = time.perf_counter() - start
    return found | counts | told(analysis.to_json(all_lags=True), steps) | {"seconds": seconds}


def told(text: str, steps: int) -> dict[str, Any]:
    """What a user reads: strict JSON, its gain (None is zero), verdict, and whether any of it is missing."""
    answer = json.loads(text, parse_constant=_refused)
    (full,) = (chain for chain in answer["chains"] if chain["name"] == "full")
    gain, zero = full["log10_norm"]["median"], full["exact_zeros"][0] == full["size"]
    lacks = [
        gain is None and not zero,
        full["rate"]["median"] is None and not zero,
        full["horizon"]["median"] is None,
        full["by_lag"]["lag"] != list(range(1, steps + 1)) or len(full["by_lag"]["log10_norm"]) != steps,
    ]
    return {"gain": gain, "level": answer["verdict"]["level"], "missing": any(lacks)}


def _refused(name: str) -> None:
    raise ValueError(f"{name} is not of JSON")


def sweep(
    cells: Sequence[str], hidden: int, lengths: Sequence[int], done: Path | None
) -> Iterator[dict[str, Any]]:
    """All of them; a state beyond float64 (an error that names the step) is an answer too."""
    known = [json.loads(line) for line in done.read_text().splitlines()] if done and done.exists() else []
    keys = {(row["cell"], row["steps"], row["weights"], row["inputs"]): row for row in known}
    for cell, steps, weights, size in itertools.product(cells, lengths, WEIGHTS, INPUTS):
        row = keys.get((cell, steps, weights, size))
        if row is None:
            row = one(cell, hidden, steps, weights, size)
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
    parser.add_argument("--done", type=Path)
    given = parser.parse_args()
    lengths = [int(steps) for steps in given.steps.split(",")]
    rows = sweep(given.cells.split(","), given.hidden, lengths, given.done)
    print("| cell | T | analyses | ended early | refused | values | zeros | lost | slowest, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (cell, steps), group in itertools.groupby(rows, lambda row: (row["cell"], row["steps"])):
        found = list(group)
        told = [row for row in found if "error" not in row]
        sums = [sum(row[name] for row in told) for name in ("missing", "values", "zeros", "lost")]
        slowest = max((row["seconds"] for row in told), default=0.0)
        refused = [row for row in found if "error" in row]
        print(
            f"| {cell} | {steps} | {len(found)} | {sums[0]} | {len(refused)} "
            f"| {sums[1]} | {sums[2]} | {sums[3]} | {slowest:.1f} |",
            flush=True,
        )
        for row in refused:
            print(f"  weights {row['weights']:g}, inputs {row['inputs']:g}: {row['error']}")


if __name__ == "__main__":
    main()
