"""Where time goes on an accelerator: kernels by name, and what is left to the host.

    python benchmarks/kernels.py [ROW ...]

A row is one of those that `speed.py --device` times; every program is compiled before. Kernels that run side
by side count for themselves. On a CPU there are none.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import jax
from engine_rows import ENTRY_ERROR, STEPS, Case, compiled_spectra, top_of_full_chain
from jax.profiler import ProfileData
from rich.console import Console
from rich.table import Table

import gradscope
from gradscope.measure import programs

# Kernels that are named.
NAMED = 6


def values(m: int) -> Callable[[], Any]:
    """All values of one chain with their error and lags."""
    chain = Case.of("lstm", m // 2).jacobians
    return lambda: compiled_spectra([chain], jax.local_devices(), ENTRY_ERROR)


ROWS: dict[str, Callable[[], Callable[[], Any]]] = {
    **{f"values-{m}": partial(values, m) for m in (64, 128, 256, 512)},
    "analysis-64": lambda: lambda: gradscope.analyze(hidden=64, steps=STEPS),
    "top-lags": lambda: top_of_full_chain(4096, STEPS, "float32", by_lag=True),
    "batch": lambda: lambda: gradscope.analyze(hidden=128, steps=STEPS, batch=64),
}


def main() -> None:
    """Print a row for each."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    options = arguments.parse_args()
    jax.config.update("jax_enable_x64", True)
    table = Table("row", "ms in all", "ms of kernels", "kernels", "of these, ms")
    with mock.patch.object(programs, "PROGRAM", 0):
        for name in options.rows or ROWS:
            table.add_row(name, *measured(ROWS[name]()))
    Console(width=132).print(jax.devices()[0].device_kind, table)


def measured(run: Callable[[], Any]) -> Iterator[str]:
    """The cells of a row: once without a profiler, which takes its own, and once with it."""
    run()
    began = time.perf_counter()
    run()
    yield f"{1000 * (time.perf_counter() - began):.0f}"
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        found = kernels(Path(folder))
    taken, count = Counter[str](), len(found)
    for name, nanoseconds in found:
        taken[name] += nanoseconds
    yield f"{taken.total() / 1e6:.0f}"
    yield str(count)
    yield ", ".join(f"{name[:40]} {ns / 1e6:.1f}" for name, ns in taken.most_common(NAMED))


def kernels(folder: Path) -> list[tuple[str, float]]:
    """Name and nanoseconds of every kernel that was traced."""
    (file,) = folder.rglob("*.xplane.pb")
    planes = [plane for plane in ProfileData.from_file(str(file)).planes if "GPU" in plane.name]
    streams = [line for plane in planes for line in plane.lines if "Stream" in line.name]
    return [(event.name, event.duration_ns) for stream in streams for event in stream.events]


if __name__ == "__main__":
    main()
