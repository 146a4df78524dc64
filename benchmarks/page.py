"""Seconds and bytes of the page of a model of three layers of 256 units, once it is analysed.

    python benchmarks/page.py [--steps T]

The analysis is a real one, of three GRUs at initialisation, of few steps (20): with them only points of
lines grow. Three pages of the same result; the first pays for the imports. Exit code 1 beyond a second or
300 KB.
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
SECONDS, BYTES = 1.0, 300_000


def model(path: Path) -> None:
    """Weights of PyTorch's names and law, as an .npz."""
    rng = np.random.default_rng(0)
    bound = HIDDEN**-0.5
    np.savez(
        path,
        **{
            f"gru.{kind}_l{k}": rng.uniform(-bound, bound, shape)
            for k in range(LAYERS)
            for kind, shape in (
                ("weight_ih", (3 * HIDDEN, HIDDEN if k else INPUT)),
                ("weight_hh", (3 * HIDDEN, HIDDEN)),
                ("bias_ih", (3 * HIDDEN,)),
                ("bias_hh", (3 * HIDDEN,)),
            )
        },
    )


def main() -> int:
    """Print both; 1 if one is more than is promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        model(path)
        started = time.perf_counter()
        analysis = gradscope.analyze(checkpoint=str(path), steps=steps)
        print(f"analysis, {LAYERS} x {HIDDEN} units, {steps} steps: {time.perf_counter() - started:.1f} s")
    missed = False
    for number in range(3):
        started = time.perf_counter()
        page = html_page(analysis.to_dict())
        seconds, size = time.perf_counter() - started, len(page.encode())
        missed |= seconds > SECONDS or size >= BYTES
        print(f"page {number + 1}: {seconds:.2f} s (at most {SECONDS:g}), {size:,} bytes (below {BYTES:,})")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
