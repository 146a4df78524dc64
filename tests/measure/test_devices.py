"""Batches over devices and processes, long chains by segment: the same numbers as one after the other."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.asking import make_problem
from oracles.few import few

import gradscope
from gradscope import machine
from gradscope.linearize import budget
from gradscope.linearize.cell_chain import CellChain
from gradscope.linearize.paths import DensePath
from gradscope.linearize.sequence import Linearized
from gradscope.measure import workers
from gradscope.measure.all_values import Task, measure_sequence
from gradscope.measure.chains import Ask
from gradscope.product_svd.spectrum import spectrum

ANALYZE = [sys.executable, "-m", "gradscope", "analyze", "--json"]


def same(one, other, tolerance):
    """Two JSON trees agree, numbers to a tolerance; but for estimated errors, and sentences with them."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"log10_error", "reasons"}:
            same(one[name], other[name], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair, tolerance)
    elif isinstance(one, float) and one != other:
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    else:
        assert one == other


@pytest.mark.slow  # three processes; linearize/test_trajectory.py spreads a batch in one
def test_a_batch_does_not_depend_on_the_number_of_devices():
    arguments = ["--cell", "gru", "--hidden", "5", "--steps", "101", "--batch", "4"]
    results = []
    for count in ("1", "2", "4"):
        command = [*ANALYZE, *arguments, "--devices", count]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said = f"gradscope: --devices {count} on "  # of more than there are
        assert done.stderr == "" or done.stderr.startswith(said)
        results.append(json.loads(done.stdout))
    for other in results[1:]:
        same(results[0], other, 1e-12)


@pytest.mark.slow
def test_processes_give_what_one_after_the_other_gives(monkeypatch):
    problem = {"cell": "lstm-peephole", "hidden": 4, "input_size": 2, "steps": 120, "batch": 5, "seed": 3}
    monkeypatch.setattr("gradscope.measure.batch.cores", lambda: 1)
    alone = gradscope.analyze(**problem)
    monkeypatch.setattr("gradscope.measure.batch.cores", lambda: 3)
    started = []
    monkeypatch.setattr(workers.subprocess, "Popen", counting(workers.subprocess.Popen, started))
    reports = []
    together = gradscope.analyze(**problem, progress=lambda *report: reports.append(report))
    assert len(started) == 2
    assert together.to_dict() == alone.to_dict()
    assert reports[-1] == (pytest.approx(5), 5)
    assert all(process.returncode is not None for process in started)


def counting(popen, started):
    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    return start


@pytest.mark.parametrize("executable", few(["/bin/false", "/bin/true", "/nonexistent"], "/bin/true"))
def test_workers_that_cannot_start_are_not_missed(monkeypatch, executable):
    monkeypatch.setattr("gradscope.measure.batch.cores", lambda: 3)
    monkeypatch.setattr(sys, "executable", executable)
    analysis = gradscope.analyze(cell="linear", hidden=3, input_size=1, steps=400, batch=3)
    assert len(analysis.full.spectra) == 3


def test_a_failure_in_a_worker_is_raised_here():
    class Broken:
        def segment(self, i):
            return "no chain"

    jobs = [(Task((0,), 3, Ask(1e-16, -3.0)), Broken())] * 2
    work = workers._Work(jobs, lambda _: lambda _: None)
    with workers._processes(1) as (worker,):
        work.share(worker)
    with pytest.raises(AttributeError, match="str") as caught:
        work.finished()
    assert "in serve" in caught.value.__notes__[0]


def test_workers_end_with_their_parent():
    code = (
        "import os\nfrom gradscope.measure.workers import _processes\n"
        "with _processes(1) as (worker,):\n    print(worker.pid, flush=True)\n    os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    deadline = time.monotonic() + 30
    while not gone(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{process}/stat") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] == "Z"


def test_a_worker_knows_no_jax():
    code = "import sys, gradscope.measure.workers; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_script_without_a_main_guard_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import gradscope\nprint('here')\n"
        "analysis = gradscope.analyze(cell='rnn', hidden=3, steps=300, batch=3, devices=2)\n"
        "print(analysis.full.steps)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("here\n300\n", "")


@pytest.mark.parametrize("count", [0, -1, 1000, True, "2"])
def test_device_counts_that_cannot_be_meant(count):
    with pytest.raises(gradscope.InputError, match="devices is "):
        gradscope.analyze(hidden=2, input_size=1, steps=3, devices=count)


def test_more_devices_than_there_are():
    jax.devices()  # JAX has started, and the CPU is one device
    with pytest.raises(gradscope.InputError, match="devices is 7, but JAX has 1 cpu devices"):
        gradscope.analyze(hidden=2, input_size=1, steps=3, devices=7)


# -- long chains, by segment ------------------------------------------------------------------------


CASES = [
    {"cell": "lstm"},
    {"cell": "lstm", "view": "cell"},
    {"cell": "lstm-peephole", "cut": "R_o"},
    {"cell": "gru-reset-before"},
    {"cell": "rnn"},
]


@pytest.mark.parametrize("options", few(CASES, CASES[0], CASES[-1]), ids=str)
@pytest.mark.parametrize("length", [pytest.param(1, marks=pytest.mark.slow), 24])
def test_segments_are_one_chain(monkeypatch, options, length):
    problem = {"hidden": 4, "input_size": 3, "steps": 50, **options}
    whole = gradscope.analyze(**problem).to_dict()
    cell = make_problem(**problem).system.cell
    monkeypatch.setattr("gradscope.linearize.sequence.SEGMENT_BYTES", length * budget.step_bytes(cell, 4))
    device = jax.devices()[0]
    view = problem.get("view", "state")
    linearized = Linearized(make_problem(**problem).system, 0, device, view=view)
    assert len(linearized.starts) == (3 if length > 1 else 25)
    same(whole, gradscope.analyze(**problem).to_dict(), 1e-10)


@pytest.mark.slow
def test_the_jacobians_of_a_segment_are_those_of_autodiff(monkeypatch):
    system = make_problem(cell="lstm", hidden=3, input_size=2, steps=20).system
    monkeypatch.setattr("gradscope.linearize.sequence.SEGMENT_BYTES", 8 * budget.step_bytes(system.cell, 3))
    found = Linearized(system, 0, jax.devices()[0])
    assert found.starts == [0, 7, 14]
    with jax.enable_x64(True):
        state = jnp.zeros(6)
        for t, x in enumerate(system.inputs[0]):
            segment, at = divmod(t, 7)
            expected = jax.jacfwd(lambda s, x=x: system.cell.advance(system.parameters, x, s))(state)
            np.testing.assert_allclose(found.segment(segment)[at], expected, rtol=1e-12, atol=1e-14)
            state = system.cell.advance(system.parameters, x, state)


def test_few_segments_are_held_and_each_is_loaded_a_few_times():
    stacks = np.random.default_rng(0).normal(size=(6, 5, 3, 3))
    loads = []

    def segment(i):
        loads.append(i)
        return CellChain((DensePath("a", stacks[i]), DensePath("b", 0.1 * stacks[i])), 5, 3)

    found = measure_sequence(Task(tuple(range(0, 30, 5)), 30, Ask(2e-16, -np.inf)), segment, lambda _: None)
    expected = spectrum(1.1 * stacks.reshape(30, 3, 3)).log10_singular_values
    np.testing.assert_allclose(found.spectra["full"].log10_singular_values, expected, atol=1e-11)
    np.testing.assert_allclose(found.shares["a"], 1 / 1.1, rtol=1e-9)
    assert len(loads) < 40 * 6


def test_memory_of_a_container(monkeypatch, tmp_path):
    inner = tmp_path / "groups" / "job" / "step"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/job/step\n")
    monkeypatch.setattr(machine, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    physical = machine.available()
    (inner / "memory.max").write_text("max\n")
    assert machine.available() == physical
    (inner.parent / "memory.max").write_text(f"{2**20}\n")
    assert machine.available() == 2**20
    with pytest.raises(gradscope.InputError, match="this machine has 0"):
        make_problem(hidden=64)


@pytest.mark.slow
def test_workers_are_at_nothing_else_when_states_leave_float64(monkeypatch):
    """Then the same workers are asked again, for the slopes of numbers of any exponent."""
    drawn = {"cell": "linear", "hidden": 4, "input_size": 3, "steps": 300, "gain": 30.0, "batch": 3}
    found = []
    for worth in (0, np.inf):
        monkeypatch.setattr("gradscope.measure.batch._WORTH_A_WORKER", worth)
        found.append(gradscope.analyze(**drawn, only="verdict").full.spectra)
    for many, one in zip(*found, strict=True):
        assert many.log10_singular_values[0] == pytest.approx(one.log10_singular_values[0], abs=1e-9)
