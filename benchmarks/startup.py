"""How long the command line takes, as ratios to what it cannot do without.

    python benchmarks/startup.py

Every run is a whole process. The two of a pair alternate, the ratio is taken pair by pair and its
median is printed, so a machine whose speed drifts does not matter. The compilation cache is warm
(a folder of its own) but for the row that says cold; Python's own, of modules, is warm as after an
installation. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import as_installed
from rich.console import Console
from rich.table import Table

PAIRS = 5
JAX = [sys.executable, "-c", "import jax; jax.jit(lambda x: x + 1)(1.0).block_until_ready()"]
CLICK_AND_RICH = [sys.executable, "-c", "import click, rich, rich.console, rich.table"]
GRADSCOPE = [sys.executable, "-m", "gradscope"]
ANALYZE = [*GRADSCOPE, "analyze", "--cell", "lstm", "--steps", "200"]

# what, command, what it is compared with, target ratio (None: no target), cold cache
ROWS = (
    ("analyze, warm", ANALYZE, "import jax, one jit", JAX, 2.0, False),
    ("analyze, cold", ANALYZE, "import jax, one jit", JAX, 5.0, True),
    ("--help", [*GRADSCOPE, "--help"], "import click, rich", CLICK_AND_RICH, 3.0, False),
    ("analyze --help", [*GRADSCOPE, "analyze", "--help"], "import click, rich", CLICK_AND_RICH, 3.0, False),
)


def main() -> int:
    """Print the table; 1 if a target is missed."""
    table = Table("command", "seconds", "compared with", "seconds", "ratio", "target", "")
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, command, other_name, other, target, cold in ROWS:
            cache = Path(folder) / "cache"
            pairs = [
                (_seconds(command, cache, cold), _seconds(other, cache, cold)) for _ in range(PAIRS + 1)
            ][1:]
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            met = target is None or ratio <= target
            missed |= not met
            goal = "-" if target is None else f"<= {target}"
            table.add_row(
                name,
                f"{ours:.2f}",
                other_name,
                f"{theirs:.2f}",
                f"{ratio:.2f}",
                goal,
                "ok" if met else "MISSED",
            )
    Console().print(table)
    return int(missed)


def _seconds(command: list[str], cache: Path, cold: bool) -> float:
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    environment = as_installed(cache.parent) | {"GRADSCOPE_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
