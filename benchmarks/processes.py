"""Whole processes: seconds and peak memory of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# A process that only imports jax and runs a trivial jitted function.
JAX = [sys.executable, "-c", "import jax; jax.jit(lambda x: x + 1)(1.0).block_until_ready()"]
GRADSCOPE = [sys.executable, "-m", "gradscope"]
_PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
)
_PEAK += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def as_installed(folder: Path) -> dict[str, str]:
    """The environment of a process whose modules stay compiled, as those of an installation, in a folder.

    Some machines keep none, and compile the modules of a checkout, not those of others, at every start.
    """
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return given | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(folder / "modules")}


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in GB of a command (of its largest process)."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _PEAK, *command], check=True, capture_output=True, text=True)
    kilobytes = int(done.stdout) / (1024 if sys.platform == "darwin" else 1)
    return time.perf_counter() - start, kilobytes / 1e6


def measured(arguments: list[str]) -> tuple[float, float]:
    """Seconds of a gradscope command, and its peak memory in GB above a process that only has JAX."""
    seconds, peak = run([*GRADSCOPE, *arguments])
    return seconds, peak - run(JAX)[1]


def rows_of(arguments: list[str], folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a gradscope command in a folder, which has its compilation cache, and the rows it prints."""
    environment = as_installed(folder) | {"GRADSCOPE_CACHE_DIR": str(folder / "cache")}
    command = [*GRADSCOPE, *arguments, "--format", "jsonl"]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, [json.loads(line) for line in done.stdout.splitlines()]
