"""What the gain without each path costs beside the rest of an analysis: ``python benchmarks/without.py``.

A row for each cell, hidden size and way: CPU seconds of an analysis with it and of one that leaves it
out, each the least of some in this process, by turns, so that no program is compiled; and their ratio.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time
from contextlib import ExitStack
from unittest.mock import patch

import gradscope
from gradscope.measure.all_values import JacobianChains
from gradscope.measure.top_values import TangentChains

STEPS = 200
TIMES = 4


def seconds(**options: object) -> float:
    """CPU seconds of an analysis."""
    began = time.process_time()
    gradscope.analyze(steps=STEPS, **options)
    return time.process_time() - began


def both(**options: object) -> tuple[float, float]:
    """With it and without."""
    whole, less = [], []
    for _ in range(TIMES):
        whole.append(seconds(**options))
        with ExitStack() as left_out:
            for kind in (JacobianChains, TangentChains):
                left_out.enter_context(patch.object(kind, "without", lambda *_: {}))
            less.append(seconds(**options))
    return min(whole), min(less)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", default="16,64,128")
    parser.add_argument("--cells", default="lstm,gru")
    asked = parser.parse_args()
    print("| cell | hidden | values | with, s | left out, s | ratio |\n|---|---|---|---|---|---|")
    for cell in asked.cells.split(","):
        for hidden in map(int, asked.hidden.split(",")):
            for top in (None, 4):
                whole, less = both(cell=cell, hidden=hidden, top=top)
                print(
                    f"| {cell} | {hidden} | {top or 'all'} | {whole:.2f} | {less:.2f} | {whole / less:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
