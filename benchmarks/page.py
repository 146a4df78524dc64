"""Seconds and bytes of the page of a model of three layers of 256 units, once it is analysed.

    python benchmarks/page.py [--cell gru|lstm] [--steps T] [--top K] [--only PART]

The analysis is a real one, of three layers at initialisation, of few steps (20) where nothing is said; --top
and --only let one of 200 steps end sooner. Three pages of the same result, of one thread; the first pays for
the imports. Seconds are by the clock, which other work on the machine slows down, and beside them of the
processor. Exit code 1 beyond a second by the clock or 300 KB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import gradscope
from gradscope.report.html_page import html_page

LAYERS, HIDDEN, INPUT = 3, 256, 64
GATES = {"gru": 3, "lstm": 4}
SECONDS, BYTES = 1.0, 300_000


def model(path: Path, cell: str) -> None:
    """Weights of PyTorch's names and law, as an .npz."""
    rng = np.random.default_rng(0)
    bound, rows = HIDDEN**-0.5, GATES[cell] * HIDDEN
    np.savez(
        path,
        **{
            f"{cell}.{kind}_l{k}": rng.uniform(-bound, bound, shape)
            for k in range(LAYERS)
            for kind, shape in (
                ("weight_ih", (rows, HIDDEN if k else INPUT)),
                ("weight_hh", (rows, HIDDEN)),
                ("bias_ih", (rows,)),
                ("bias_hh", (rows,)),
            )
        },
    )


def main() -> int:
    """Print both; 1 if one is more than is promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cell", choices=[*GATES], default="gru")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--top", type=int)
    parser.add_argument("--only", default="all")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        model(path, asked.cell)
        started = time.perf_counter()
        given = {"steps": asked.steps, "top": asked.top, "only": asked.only}
        analysis = gradscope.analyze(checkpoint=str(path), **given)
        took = time.perf_counter() - started
    print(f"analysis, {asked.cell}, {LAYERS} x {HIDDEN} units, {asked.steps} steps: {took:.1f} s")
    missed = False
    for number in range(3):
        started, cpu = time.perf_counter(), time.process_time()
        page = html_page(analysis.to_dict())
        seconds, size = time.perf_counter() - started, len(page.encode())
        cpu = time.process_time() - cpu
        missed |= seconds > SECONDS or size >= BYTES
        said = f"{seconds:.2f} s (at most {SECONDS:g}), {cpu:.2f} s of the processor"
        print(f"page {number + 1}: {said}, {size:,} bytes (below {BYTES:,})")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
