"""What ``gradscope check`` on ten analyses costs beside one ``gradscope analyze``.

    python benchmarks/check_cost.py

Ten analyses in one process are to take less than three times a whole process of one, and what their numeric
work takes. The numeric work of each is the time of its second run in a process. Whole processes alternate,
the median of their ratios counts; the compilation cache is warm, a folder of its own. Exit code 1 if the
target is missed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5
CELLS = ("lstm", "gru", "rnn", "lstm-peephole", "gru-reset-before")
ANALYSES = [(cell, steps) for cell in CELLS for steps in (100, 200)]
TARGET = 3.0

GRADSCOPE = [sys.executable, "-m", "gradscope"]
NUMERIC = """
import sys, time
from gradscope import analyze
from gradscope.machine import use_compilation_cache
use_compilation_cache()
total = 0.0
for cell, steps in {analyses!r}:
    for _ in range(2):
        start = time.perf_counter()
        analyze(cell=cell, hidden=32, steps=steps, only="paths")
        taken = time.perf_counter() - start
    total += taken
print(total)
"""


def main() -> int:
    """Print the costs; 1 if the target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "gradscope.toml"
        config.write_text("".join(map(_table, *zip(*ANALYSES, strict=True))))
        one = [*GRADSCOPE, "analyze", "--cell", "lstm", "--hidden", "32", "--only", "paths"]
        ten = [*GRADSCOPE, "check", "--config", str(config)]
        numeric = [sys.executable, "-c", NUMERIC.format(analyses=ANALYSES)]
        runs = [(_run(one, folder), _run(ten, folder), _run(numeric, folder)) for _ in range(RUNS + 1)][1:]
    single = statistics.median(run[0][0] for run in runs)
    all_ten = statistics.median(run[1][0] for run in runs)
    work = statistics.median(float(run[2][1]) for run in runs)
    ratio = statistics.median((many[0] - float(done[1])) / alone[0] for alone, many, done in runs)
    print(f"gradscope analyze, one process          {single:6.2f} s")
    print(f"gradscope check, ten analyses           {all_ten:6.2f} s")
    print(f"  numeric work of the ten               {work:6.2f} s")
    print(f"  the rest, in processes of one         {ratio:6.2f}   (target: below {TARGET:g})")
    return int(ratio >= TARGET)


def _table(cell: str, steps: int) -> str:
    name = f'[analyses."{cell} {steps}"]\n'
    return (
        f'{name}cell = "{cell}"\nsteps = {steps}\nhidden = 32\nbudgets."log10_norm.{_path(cell)}".max = 9\n'
    )


def _path(cell: str) -> str:
    return {"lstm": "carousel", "gru": "carry"}.get(cell.partition("-")[0], "R")


def _run(command: list[str], folder: str) -> tuple[float, str]:
    """Seconds, and what it printed."""
    environment = os.environ | {"GRADSCOPE_CACHE_DIR": str(Path(folder) / "cache")}
    start = time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=folder, check=True, capture_output=True, text=True, encoding="utf-8"
    )
    return time.perf_counter() - start, done.stdout


if __name__ == "__main__":
    sys.exit(main())
