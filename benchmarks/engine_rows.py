"""Targets of the engine: what `speed.py` measures of them, on whatever device JAX has."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from methods import ENTRY_ERROR, STEPS, Case, gradscope_all, plain
from topk import top_of_full_chain
from waiting import COMMAND, NAIVE, run, write_model

import gradscope
from gradscope.api import analyze_problems
from gradscope.cells import find
from gradscope.checkpoints import Model
from gradscope.checkpoints.layer import Layer
from gradscope.compiled_svd.engine import compiled_spectra
from gradscope.measure import programs
from gradscope.measure.cost import saved_by_program
from gradscope.problem.layers import make_problems
from gradscope.problem.problem import make_problem
from gradscope.product_svd.spectrum import spectrum
from gradscope.settings import Settings

# What, figure, limit (negative: at least, infinite: none), digits.
Row = tuple[str, float, float, int]
CPU = jax.default_backend() == "cpu"
# All values / plain scan, on a CPU and on an accelerator; the finish is on the host.
LIMITS = {64: (8, np.inf), 128: (6, 20), 256: (5, 45), 512: (5, 150)}


def analysis_rows(hidden: int) -> Iterator[Row]:
    """The whole analysis of an LSTM."""
    base, case = plain(Case.of("lstm", hidden)), {"hidden": hidden, "steps": STEPS}
    whole, scan = together([lambda: gradscope.analyze(**case), base], 2)
    yield f"whole LSTM analysis, hidden {hidden} / plain product", whole / scan, 12 if CPU else np.inf, 1
    name = f"gradscope.analyze again in a process, hidden {hidden}, T = {STEPS}: s"
    yield name, whole, (0.25 if CPU else 0.1) if hidden == 64 else np.inf, 2


def batch_rows() -> Iterator[Row]:
    """Many sequences beside one."""
    case = {"hidden": 128, "steps": STEPS}
    one, many = together([lambda: gradscope.analyze(**case), lambda: gradscope.analyze(**case, batch=64)], 1)
    yield "batch of 64, hidden 128 / batch of 1", many / one, 25 if CPU else 4, 1


def value_rows(m: int) -> Iterator[Row]:
    """All values with their error by the engine that takes chains of this size, with lags and without."""
    case = Case.of("lstm", m // 2)
    if saved_by_program(m) > 0 or not CPU:
        chain, devices = case.jacobians, jax.local_devices()
        with_lags = lambda: compiled_spectra([chain], devices, ENTRY_ERROR)  # noqa: E731
        without = lambda: compiled_spectra([chain], devices, ENTRY_ERROR, by_lag=False)  # noqa: E731
        engine = "compiled"
    else:
        with_lags, without, engine = gradscope_all(case, by_lag=True), gradscope_all(case), "host"
    lags, values, scan = together([with_lags, without, plain(case)], 4 if m < 256 else 2)
    if engine == "compiled" and None in [*with_lags(), *without()]:
        engine = "compiled, in doubt: the host engine takes this besides"
    limit = LIMITS[m][not CPU]
    yield f"all values, LSTM m = {m}, engine {engine} / plain product", values / scan, limit, 1
    yield f"norm at every lag, LSTM m = {m} / without it", lags / values, 1.3, 2


def cpu_rows() -> Iterator[Row]:
    """What the engines take of the cores for one chain, with its error and every lag."""
    devices = jax.local_devices()
    for m in (32, 64, 128, 256):
        chain = Case.of("lstm", m // 2).jacobians
        runs = (
            partial(compiled_spectra, [chain], devices, ENTRY_ERROR),
            partial(spectrum, chain, by_lag=True, entry_error=ENTRY_ERROR),
        )
        compiled, host = together(list(runs), 3, time.process_time)
        yield f"CPU time, compiled / host engine, LSTM m = {m}", compiled / host, 1, 2


def top_rows() -> Iterator[Row]:
    """Top values with the norms of some lags; on an accelerator of more than the CPU has time for."""
    if CPU:
        case = Case.of("lstm", 256)
        top, scan = together([top_of_full_chain(256, STEPS, by_lag=True), plain(case)], 2)
        yield "top 8 with lags, LSTM m = 512 / plain product", top / scan, 0.6, 2
    else:
        (top,) = together([top_of_full_chain(4096, STEPS, "float32", by_lag=True)], 2)
        yield "top 8 with lags, hidden 4096, float32: s", top, 3, 1


def program_rows() -> Iterator[Row]:
    """Programs that a first call compiles."""
    small, options = {"hidden": 16, "steps": 20}, {"--top 8": {"top": 8}, "default": {}}
    for name, limit in (("default", 4), ("--top 8", 6)):
        jax.clear_caches()
        with counted() as count:
            gradscope.analyze(**small, **options[name])
        yield f"programs compiled, {name}", len(count), limit, 0
    jax.clear_caches()
    problems = make_problems(Settings(steps=20), stacked(2, 16), jax.local_devices())
    with counted() as count:
        analyze_problems(problems)
    yield "programs compiled, two layers", len(count), 8, 0


def stack_rows() -> Iterator[Row]:
    """A model of three layers."""
    problems = make_problems(Settings(steps=30, top="all"), stacked(3, 256), jax.local_devices())
    (taken,) = together([lambda: analyze_problems(problems)], 1)
    yield "three layers of 256, 30 steps, all values, warm: s", taken, 12, 1


def bidirectional_rows() -> Iterator[Row]:
    """The same in both directions, some values."""
    problems = make_problems(Settings(steps=14, top=4), stacked(3, 256, True), jax.local_devices())
    (taken,) = together([lambda: analyze_problems(problems)], 1)
    yield "three bidirectional layers of 256, 14 steps, --top 4, warm: s", taken, 6, 1


def verdict_rows() -> Iterator[Row]:
    """The verdict alone beside what somebody would write."""
    yield "--only verdict, two LSTMs of 32, 8 x 200 / naive PyTorch loop, CPU time", verdict(), 0.5, 2


def verdict() -> float:
    """CPU time of ``--only verdict`` over that of a naive loop, whole processes of one thread.

    Of more, those that wait by spinning would count.
    """
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        folder = Path(name)
        write_model(folder)
        model = [*COMMAND, "two.safetensors", "--inputs", "x.npy", "-o", os.devnull, "--only", "verdict"]
        run(model, folder)
        naive = [sys.executable, "-c", NAIVE]
        ours, theirs = (min(run(command, folder)[1] for _ in range(2)) for command in (model, naive))
    return ours / theirs


def stacked(count: int, hidden: int, bidirectional: bool = False) -> Model:
    """LSTMs as PyTorch initialises them, each on the outputs of those below it."""
    layers: list[Layer] = []
    below: tuple[str, ...] = ()
    for number in range(count):
        names = [f"l{number}", f"l{number}.reverse"][: 1 + bidirectional]
        features = hidden * (len(below) or 1)
        for seed, name in enumerate(names):
            weights = make_problem(Settings(hidden=hidden, input_size=features, seed=2 * number + seed))
            options: dict[str, Any] = {"direction": "backward"} if seed else {}
            parameters = weights.system.parameters
            layers.append(Layer(find("lstm"), parameters, name, np.zeros(2 * hidden), below=below, **options))
        below = tuple(names)
    return Model(tuple(layers), tuple(layer.name for layer in layers))


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Names of the programs that are compiled within, or taken from the cache."""
    found: list[str] = []

    def listen(event: str, _: float, **options: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(str(options.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def together(
    runs: list[Callable[[], Any]], repeats: int = 4, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Least seconds of each, by turns, with every program compiled that saves anything."""
    least = [np.inf] * len(runs)
    with mock.patch.object(programs, "PROGRAM", 0):
        for number in range(repeats + 1):
            for i, one in enumerate(runs):
                began = clock()
                one()
                if number:  # the first compiles
                    least[i] = min(least[i], clock() - began)
    return least


# Every target of the engine, by the name that it is asked for by.
ENGINE: dict[str, Callable[[], Iterator[Row]]] = {
    **{f"values-{m}": partial(value_rows, m) for m in LIMITS},
    **{f"analysis-{hidden}": partial(analysis_rows, hidden) for hidden in (64, 128)},
    "programs": program_rows,
    **({"engines": cpu_rows} if CPU else {}),
    "batch": batch_rows,
    "top-lags": top_rows,
    "three-layers": stack_rows,
    "three-bidirectional": bidirectional_rows,
    "verdict": verdict_rows,
}
# What an accelerator is for, in order of worth: with compiling two minutes in all.
DEVICE = (*(f"values-{m}" for m in LIMITS), "analysis-64", "top-lags", "batch")


def device_rows(seconds: float) -> Iterator[Row]:
    """Those of ``DEVICE`` that are begun within so many seconds; what fails is told, and the rest goes on."""
    began = time.perf_counter()
    for name in DEVICE:
        if time.perf_counter() - began > seconds:
            print(f"not begun within {seconds:.0f} s: {name}", flush=True)
            continue
        try:
            yield from ENGINE[name]()
        except Exception as error:
            print(f"failed: {name}: {error!r}", flush=True)
