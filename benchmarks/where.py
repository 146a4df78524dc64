"""Where the time of one run over the chain goes, and that of a whole analysis: `python benchmarks/where.py`.

In per cent of CPU time. What compiled programs take in threads of their own is a row of the analysis, which
is done again in a process. --process tells instead where that of whole processes goes, with warm caches;
--operations which operations a compiled chain of 64 states consists of, by JAX's profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1])]

import jax
import numpy as np
from methods import ENTRY_ERROR, STEPS, Case
from processes import as_installed
from rich.console import Console
from rich.table import Table
from waiting import write_model

import gradscope
import gradscope.api
import gradscope.measure.all_values
import gradscope.measure.batch
import gradscope.product_svd.error_estimate
import gradscope.product_svd.graded_chain
import gradscope.product_svd.graded_lu
import gradscope.product_svd.steps
from gradscope.compiled_svd.engine import compiled_spectra
from gradscope.linearize.cell_chain import CellChain
from gradscope.linearize.sequence import Linearized
from gradscope.linearize.stack_chain import StackChain
from gradscope.measure import programs
from gradscope.product_svd.error_estimate import GROUPED, Run
from gradscope.product_svd.graded_chain import Way
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.plain_product import PlainProducts

# What threads of their own take beside these parts.
PROGRAMS = "in other threads: programs, side by side"
# What a part is called, what holds its function, and the name of that.
Parts = tuple[tuple[str, Any, str], ...]
RUN: Parts = (
    ("form the step", gradscope.product_svd.steps.Steps, "parts"),
    ("Y times the step", gradscope.product_svd.steps, "multiplied"),
    ("LU", gradscope.product_svd.graded_lu, "dgetrf"),
    ("N times X", gradscope.product_svd.graded_lu.Factors, "times"),
    ("L in the order of the states", gradscope.product_svd.graded_lu.Factors, "lower"),
    ("finish: QR and Jacobi", gradscope.product_svd.outcome, "decomposed"),
    ("norm by lag", LagNorm, "__call__"),
)
ANALYSIS: Parts = (
    ("trajectory, Jacobians", Linearized, "segment"),
    ("full chain and paths: around programs", gradscope.measure.batch, "by_programs"),
    ("full chain and paths: by the host", gradscope.measure.all_values, "spectrum"),
    ("largest gain", gradscope.measure.all_values, "log10_largest_gain"),
    ("shares", gradscope.measure.all_values, "shares"),
    ("without each path: form the steps", CellChain, "_but_one"),
    ("without each path: multiply", PlainProducts, "times"),
    ("without each path: norms", PlainProducts, "_measure"),
    ("report", gradscope.api, "_concluded"),
)
PROCESS: Parts = (
    ("prepare: model, inputs, trajectory's program", gradscope.api, "_prepare"),
    ("trajectory, Jacobians", Linearized, "segment"),
    ("chains", gradscope.measure.all_values, "spectrum"),
    ("without each path", gradscope.product_svd.spectrum, "first_values"),
    ("form the steps of a stack", StackChain, "_sum"),
    ("plain products: multiply", PlainProducts, "times"),
    ("plain products: norms", PlainProducts, "_measure"),
    ("report", gradscope.api, "_concluded"),
)
# Arguments of whole processes; one sequence at a time, or the parts of several would mix.
TWO_LAYERS = ["two.safetensors", "--inputs", "x.npy", "--only", "verdict", "--devices", "1"]
PROCESSES = {
    "--only verdict, two LSTMs": TWO_LAYERS,
    "default analyze": ["--cell", "lstm", "--steps", "200"],
}
# What such a process does before it comes to the command, as an installed one does.
STARTED = """
import json, sys, time
spent, since = {"Python": time.process_time()}, time.process_time()
def done(name):
    global since
    spent[name], since = time.process_time() - since, time.process_time()
from gradscope.cli.main import main
done("click, rich and the command line")
from gradscope.cli.importing import importing
with importing():
    import jax
    done("import jax")
    import gradscope.api
    done("all other imports")
jax.devices()
done("JAX's devices")
sys.path.insert(0, sys.argv.pop(1))
import where
since = time.process_time()
parts = where.spent(lambda: main(sys.argv[1:]), where.PROCESS)
print(json.dumps(spent | parts))
"""


class Clock:
    """CPU seconds by part, in any thread; what one part calls of another counts for the other."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.own = threading.local()  # what is under way, and since when
        self.lock = threading.Lock()

    def turn(self, name: str | None) -> None:
        """From here on ``name`` is at work, or whoever was before."""
        now, under_way = time.thread_time(), self.own.__dict__.setdefault("open", [])
        with self.lock:
            if under_way:
                self.spent[under_way[-1]] += now - self.own.since
        self.own.since = now
        if name is None:
            under_way.pop()
        else:
            under_way.append(name)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed as ``name``."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.turn(name)
            try:
                return function(*arguments, **options)
            finally:
                self.turn(None)

        return timed


def main() -> None:
    """Print a table for a run and one for an analysis, a column for each case; or one for whole processes."""
    jax.config.update("jax_enable_x64", True)
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--process", action="store_true", help="whole processes")
    arguments.add_argument("--operations", action="store_true", help="of a compiled chain")
    options = arguments.parse_args()
    if options.operations:
        operations(Case.of("lstm", 32))
        return
    if options.process:
        shown("a whole process", {what: process(given) for what, given in PROCESSES.items()})
        return
    cases = [Case.of("lstm", 64), Case.of("lstm", 128), Case.of("lstm", 256)]
    cases.append(Case.of("rnn", 256, init="gaussian", gain=1.5))
    table_of("one run", RUN, {case.name: partial(one_run, case) for case in cases})
    with mock.patch.object(programs, "PROGRAM", 0):  # those that save anything are compiled
        sizes = {f"LSTM {hidden}": partial(analysis, hidden) for hidden in (64, 128)}
        table_of("an analysis, again", ANALYSIS, sizes)


def table_of(what: str, parts: Parts, runs: dict[str, Callable[[], Callable[[], Any]]]) -> None:
    """Print what each part takes of the time; runs : each prepares what is timed."""
    shown(what, {name: spent(run(), parts) for name, run in runs.items()})


def shown(what: str, columns: dict[str, Counter[str]]) -> None:
    """Print what each part takes, a column for each case."""
    table = Table(f"per cent of {what}", *columns)
    columns = {
        name: Counter({part: max(0.0, taken) for part, taken in one.items()}) for name, one in columns.items()
    }
    last = (PROGRAMS, "the rest")
    each = dict.fromkeys(name for one in columns.values() for name in one if name not in last)
    for part in (*each, *last):
        shares = [f"{100 * one[part] / sum(one.values()):.0f}" for one in columns.values()]
        if part not in last or {*shares} != {"0"}:
            table.add_row(part, *shares)
    table.add_row("CPU seconds", *(f"{sum(one.values()):.2f}" for one in columns.values()))
    Console(width=110).print(table)


def process(arguments: list[str]) -> Counter[str]:
    """CPU seconds by part of `gradscope analyze` as a process, the second one that the caches know."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        environment = as_installed(folder) | {
            "GRADSCOPE_CACHE_DIR": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", STARTED, str(Path(__file__).parent), "analyze", *arguments]
        for _ in range(2):
            done = subprocess.run(
                [*command, "-o", os.devnull], cwd=folder, env=environment, capture_output=True, check=True
            )
    return Counter(json.loads(done.stdout))


def operations(case: Case) -> None:
    """Print what a compiled chain with its lags consists of, the dearest first, and the median of each.

    What the profiler adds to operations as short as these is in it.
    """
    devices, taken = jax.local_devices(), defaultdict[str, list[float]](list)
    run = partial(compiled_spectra, [case.jacobians], devices, ENTRY_ERROR)
    run()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (found,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(found))
    for event in (event for plane in data.planes for line in plane.lines for event in line.events):
        if not event.name.startswith(("end:", "while", "cond", "Thunk")):  # these are sums of others
            taken[event.name].append(event.duration_ns / 1e3)
    middle = {name: float(np.median(each)) for name, each in taken.items() if len(each) >= STEPS}
    table = Table("operation", "how often", "microseconds", "of all, per cent")
    whole = sum(len(taken[name]) * one for name, one in middle.items())
    for name in sorted(middle, key=lambda name: -len(taken[name]) * middle[name])[:30]:
        count = len(taken[name])
        table.add_row(name, f"{count}", f"{middle[name]:.1f}", f"{100 * count * middle[name] / whole:.0f}")
    Console(width=110).print(table)
    short = 100 * sum(len(taken[name]) * one for name, one in middle.items() if one < 1) / whole
    count = sum(len(taken[name]) for name in middle)
    print(f"{count} operations; those below a microsecond take {short:.0f} per cent")


def one_run(case: Case) -> Callable[[], Any]:
    """A run with the norm at every lag."""
    steps, _ = gradscope.product_svd.steps.checked(case.jacobians)
    return lambda: Run(steps, Way(True, GROUPED), LagNorm(), rounded=ENTRY_ERROR)


def analysis(hidden: int) -> Callable[[], Any]:
    """A default analysis, once all is compiled."""
    run = partial(gradscope.analyze, hidden=hidden, steps=STEPS)
    run()
    run()
    return run


def spent(run: Callable[[], Any], parts: Parts) -> Counter[str]:
    """CPU seconds of each part of a run."""
    clock = Clock()
    saved = [(owner, name, getattr(owner, name)) for _, owner, name in parts]
    for (label, owner, name), (*_, function) in zip(parts, saved, strict=True):
        setattr(owner, name, clock.around(label, function))
    began = time.process_time()
    try:
        clock.turn("the rest")
        clock.spent.clear()
        run()
        clock.turn(None)
    finally:
        for owner, name, function in saved:
            setattr(owner, name, function)
    clock.spent[PROGRAMS] = time.process_time() - began - sum(clock.spent.values())
    return clock.spent


if __name__ == "__main__":
    main()
