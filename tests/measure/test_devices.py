"""Batches over devices and threads, long chains by segment: the same numbers as one after the other."""

import json
import subprocess
import sys
import threading

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
from gradscope.measure import batch
from gradscope.measure.all_values import JacobianChains, measure_sequence
from gradscope.measure.chains import Ask
from gradscope.product_svd import error_estimate
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
        notes = [
            line for line in done.stderr.splitlines() if "about" not in line
        ]  # how long it takes, if long
        said = f"gradscope: --devices {count} on "  # of more than there are
        assert all(note.startswith(said) for note in notes)
        results.append(json.loads(done.stdout))
    for other in results[1:]:
        same(results[0], other, 1e-12)


def test_threads_give_what_one_after_the_other_gives(monkeypatch):
    problem = {"cell": "lstm-peephole", "hidden": 4, "input_size": 2, "steps": 30, "batch": 3, "seed": 3}
    alone = gradscope.analyze(**problem)
    monkeypatch.setattr("gradscope.measure.batch.WORTH_A_THREAD", 1)
    monkeypatch.setattr("gradscope.measure.batch.cores", lambda: 3)
    began, measured = [], batch.measure_sequence

    def one(*given):
        began.append(threading.get_ident())
        return measured(*given)

    monkeypatch.setattr(batch, "measure_sequence", one)
    reports = []
    together = gradscope.analyze(**problem, progress=lambda *report: reports.append(report))
    assert len(began) == 3
    assert threading.get_ident() not in began
    assert together.to_dict() == alone.to_dict()
    assert reports[-1] == (pytest.approx(3), 3)


def test_no_thread_of_python_is_beside_a_small_chain_on_the_host(monkeypatch):
    """Nor is a step of a path formed to learn what is known: how many states it has, to find it zero."""
    monkeypatch.setattr("gradscope.measure.batch.cores", lambda: 2)
    where, sizes, formed = set(), set(), set()

    def noted(*given):
        where.add(threading.get_ident())
        return without(*given)

    def run(steps, *given, **options):
        where.add(threading.get_ident())
        sizes.add(max(map(len, steps.weights)))
        return once(steps, *given, **options)

    without, once, sum_of = JacobianChains._without, error_estimate.Run, CellChain._sum
    monkeypatch.setattr(JacobianChains, "_without", noted)
    monkeypatch.setattr(error_estimate, "Run", run)
    monkeypatch.setattr(CellChain, "_sum", lambda self, t: formed.add(self.size) or sum_of(self, t))
    gradscope.analyze(cell="lstm", hidden=50, input_size=2, steps=12)
    assert where == {threading.get_ident()}
    assert formed == {100}
    assert sizes == {50, 100}  # and not 0, though the forget gate's first step is zero


def test_a_failure_in_a_thread_is_raised_here(monkeypatch):
    monkeypatch.setattr("gradscope.measure.batch.WORTH_A_THREAD", 1)
    monkeypatch.setattr("gradscope.measure.batch.cores", lambda: 3)
    monkeypatch.setattr(batch, "measure_sequence", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        gradscope.analyze(cell="linear", hidden=3, input_size=1, steps=5, batch=3)


def test_chains_without_each_path_in_a_thread_of_their_own(monkeypatch):
    problem = {"cell": "lstm-peephole", "hidden": 4, "input_size": 2, "steps": 30, "seed": 3}
    monkeypatch.setattr("gradscope.measure.batch.cores", lambda: 2)
    alone = gradscope.analyze(**problem).to_dict()
    where, without = [], JacobianChains._without

    def noted(*given):
        where.append(threading.get_ident())
        return without(*given)

    monkeypatch.setattr(JacobianChains, "_without", noted)
    monkeypatch.setattr("gradscope.measure.batch.WORTH_A_THREAD", 1)
    assert gradscope.analyze(**problem).to_dict() == alone
    assert len(where) == 1
    assert threading.get_ident() not in where
    monkeypatch.setattr(JacobianChains, "_without", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        gradscope.analyze(**problem)


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

    class Sequence:
        starts, steps = tuple(range(0, 30, 5)), 30

        def segment(self, i):
            loads.append(i)
            return CellChain((DensePath("a", stacks[i]), DensePath("b", 0.1 * stacks[i])), 5, 3)

    found = measure_sequence(Sequence(), Ask(2e-16, -np.inf))
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
