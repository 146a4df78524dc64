"""Problems: what the user gave becomes exactly that, or one line that says what is wrong."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from oracles.asking import make_problem
from oracles.models import read_layer
from oracles.refusals import refused

from gradscope import machine
from gradscope.cells import CELLS, find
from gradscope.cells.cell import Cell
from gradscope.cells.initializers import initialize
from gradscope.errors import InputError
from gradscope.report.provenance import described

SMALL = {"hidden": 4, "input_size": 3, "steps": 5}


def refusal(**options):
    return refused(make_problem, **options)


def checkpoint(folder, cell="lstm", **more):
    rng = np.random.default_rng(5)
    arrays = {k: rng.standard_normal(s) for k, s in find(cell).parameters(4, 3).items()}
    np.savez(folder / "weights.npz", **arrays, **more)
    return folder / "weights.npz", arrays


# What comes out


def test_defaults():
    problem = make_problem()
    system = problem.system
    assert (system.hidden, system.input_size, system.steps, system.batch) == (64, 32, 200, 1)
    assert (system.cell.name, problem.cut, problem.view, system.dtype) == ("lstm", (), "state", "float64")
    np.testing.assert_array_equal(problem.system.state, np.zeros((1, 128)))
    expected = initialize(problem.system.cell, 64, 32)
    for key, array in problem.system.parameters.items():
        np.testing.assert_array_equal(array, expected[key])
    assert json.loads(json.dumps(described(problem, "cpu"), allow_nan=False)) == {
        "cell": "lstm",
        "hidden": 64,
        "input_size": 32,
        "steps": 200,
        "batch": 1,
        "init": "pytorch",
        "gain": 1.0,
        "biases": {},
        "seed": 0,
        "dtype": "float64",
        "accuracy": "full",
        "inputs": "normal",
        "source": "initialised",
        "jacobians": "own",
        "cut": [],
        "view": "state",
        "top": None,
        "backend": "cpu",
    }


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_makes_a_problem(cell):
    problem = make_problem(cell=cell, batch=2, **SMALL)
    assert problem.system.inputs.shape == (2, 5, 3)
    assert problem.system.state.shape == (2, 4 * len(problem.system.cell.components))
    assert {k: v.shape for k, v in problem.system.parameters.items()} == problem.system.cell.parameters(4, 3)
    system = problem.system
    assert (system.hidden, system.input_size, system.steps, system.batch) == (4, 3, 5, 2)


def test_options_reach_the_parameters():
    plain = make_problem(cell="gru", init="orthogonal", seed=7, **SMALL).system.parameters
    changed = make_problem(cell="gru", init="orthogonal", seed=7, gain=2, biases={"b_z": 3}, **SMALL)
    np.testing.assert_array_equal(changed.system.parameters["R_z"], 2 * plain["R_z"])
    np.testing.assert_array_equal(changed.system.parameters["W_z"], plain["W_z"])
    np.testing.assert_array_equal(changed.system.parameters["b_z"], np.full(4, 3.0))
    assert described(changed, "cpu")["biases"] == {"b_z": 3.0}
    assert described(changed, "cpu")["init"] == "orthogonal"


def test_random_inputs_are_normal_seeded_and_independent_of_the_weights():
    problem = make_problem(hidden=64, input_size=64, steps=64, init="gaussian", seed=3)
    x = problem.system.inputs.ravel()
    # Five standard errors of the mean, the variance and a correlation of 64 x 64 independent normals.
    bound = 5 / math.sqrt(x.size)
    assert abs(x.mean()) < bound
    assert abs(x.var() - 1) < math.sqrt(2) * bound
    for weights in problem.system.parameters.values():
        if weights.size == x.size:
            assert abs(np.corrcoef(x, weights.ravel())[0, 1]) < bound
    again = make_problem(hidden=64, input_size=64, steps=64, seed=3)
    np.testing.assert_array_equal(again.system.inputs, problem.system.inputs)
    other = make_problem(hidden=64, input_size=64, steps=64, seed=4)
    assert abs(np.corrcoef(x, other.system.inputs.ravel())[0, 1]) < bound


def test_zero_inputs():
    np.testing.assert_array_equal(make_problem(inputs="zeros", **SMALL).system.inputs, np.zeros((1, 5, 3)))


def test_a_checkpoint_brings_sizes_weights_and_state(tmp_path):
    path, arrays = checkpoint(tmp_path, c0=np.arange(4.0), h0=-np.ones(4))
    problem = make_problem(layer=read_layer(path), batch=2, steps=6)
    assert problem.system.inputs.shape == (2, 6, 3)
    np.testing.assert_array_equal(problem.system.state, [[0, 1, 2, 3, -1, -1, -1, -1]] * 2)
    for key, array in arrays.items():
        np.testing.assert_array_equal(problem.system.parameters[key], array)
    assert described(problem, "cpu")["source"] == str(path)
    assert described(problem, "cpu")["init"] is None
    assert described(problem, "cpu")["hidden"] == 4


def test_gain_and_biases_apply_to_a_checkpoint(tmp_path):
    path, arrays = checkpoint(tmp_path)
    problem = make_problem(layer=read_layer(path), gain=0.5, biases={"b_f": 2})
    for key, array in arrays.items():
        expected = 0.5 * array if key.startswith("R") else np.full(4, 2.0) if key == "b_f" else array
        np.testing.assert_array_equal(problem.system.parameters[key], expected)
    assert problem.system.cell.initialize is None
    assert "cell lstm has no bias b_q: its biases are b_z, b_i, b_f, b_o" in refusal(
        layer=read_layer(path), biases={"b_q": 1}
    )


def test_a_cell_and_initial_values_of_ones_own():
    rnn = find("rnn")
    mine = Cell("mine", rnn.parameters, rnn.step, rnn.paths, initialize=lambda rng, n, d: ones(rnn, n, d))
    problem = make_problem(cell=mine, **SMALL)
    np.testing.assert_array_equal(problem.system.parameters["R"], np.ones((4, 4)))
    assert described(problem, "cpu")["cell"] == "mine"
    assert described(problem, "cpu")["init"] is None
    assert "but cell mine brings its own: leave init out" in refusal(cell=mine, init="keras", **SMALL)


@pytest.mark.parametrize(
    "returned",
    [
        None,
        [("R", (4, 4))],
        {1: (4, 4)},
        {"": (4,)},
        {"R": [4, 4]},
        {"R": (4, 0)},
        {"R": (4, 2.5)},
        {"R": 4},
    ],
    ids=str,
)
def test_parameters_of_ones_own_that_are_no_shapes(returned):
    mine = Cell("mine", lambda n, d: returned, lambda p, x, h: h)
    message = refusal(cell=mine, **SMALL)
    assert message.startswith("parameters of cell mine: ")
    assert message.endswith("expected parameters(hidden, input_size) -> {key: tuple of positive integers}")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"name": "two\nlines"}, "cell name is 'two\\nlines', expected one line of printable text"),
        ({"name": ""}, "cell name is ''"),
        ({"name": None}, "cell name is None"),
        ({"paths": ("R", "R")}, "paths is ('R', 'R'), expected a tuple of distinct names"),
        ({"paths": "R_f"}, "paths is 'R_f', expected a tuple of distinct names"),
        ({"paths": ("R", 1)}, "paths is ('R', 1)"),
        ({"paths": ("full", "R")}, "a path is called 'full', as the whole chain is: rename it"),
        ({"components": ("h", "h")}, "components is ('h', 'h'), expected a tuple of distinct names"),
        ({"components": ()}, "components is empty, expected at least one name"),
    ],
)
def test_cells_that_cannot_be_meant(changed, expected):
    with pytest.raises(InputError) as caught:
        Cell(**({"name": "mine", "parameters": find("rnn").parameters, "step": find("rnn").step} | changed))
    assert expected in str(caught.value)


def ones(cell, hidden, input_size):
    return {key: np.ones(shape) for key, shape in cell.parameters(hidden, input_size).items()}


# Inputs

X = np.random.default_rng(6).standard_normal((2, 9, 3))


def inputs_file(folder, form):
    path = folder / f"x.{form.partition(':')[0]}"
    if form == "npy":
        np.save(path, X)
    elif form == "npz":
        np.savez(path, X)
    else:
        np.savez(path, other=np.array(["text"]), x=X)
    return f"{path}:x" if ":" in form else path


@pytest.mark.parametrize("form", ["npy", "npz", "npz:x"])
def test_inputs_from_a_file(form, tmp_path):
    given = inputs_file(tmp_path, form)
    problem = make_problem(inputs=given, hidden=4)
    np.testing.assert_array_equal(problem.system.inputs, X)
    assert (problem.system.batch, problem.system.steps, problem.system.input_size) == (2, 9, 3)
    assert described(problem, "cpu")["inputs"] == str(given)
    np.testing.assert_array_equal(make_problem(inputs=str(given), hidden=4).system.inputs, X)


@pytest.mark.parametrize("given", [X[0], X[0].tolist(), X[0].astype(np.float32), np.asfortranarray(X[0])])
def test_inputs_from_an_array(given):
    problem = make_problem(inputs=given, hidden=4)
    assert problem.system.inputs.shape == (1, 9, 3)
    np.testing.assert_array_equal(problem.system.inputs[0], np.asarray(given, np.float64))
    assert described(problem, "cpu")["inputs"] == "array"


def test_an_array_given_is_not_kept_by_reference():
    mine = X.copy()
    problem = make_problem(inputs=mine, hidden=4)
    mine[:] = 0
    np.testing.assert_array_equal(problem.system.inputs, X)


def test_the_first_steps_of_longer_inputs():
    problem = make_problem(inputs=X, hidden=4, steps=4, batch=2, input_size=3)
    np.testing.assert_array_equal(problem.system.inputs, X[:, :4])


REFUSED_INPUTS = {
    "other kind": ("nromal", {}, "'nromal': expected normal, zeros, or a .npy, .npz, .safetensors or .csv"),
    "absent": ("absent.npy", {}, "absent.npy: No such file"),
    "absent of several": ("absent.npz:x", {}, "absent.npz: No such file"),
    "more steps": (X, {"steps": 10}, "steps is 10, but the inputs have 9: at most 9"),
    "other batch": (X, {"batch": 3}, "batch is 3, but the inputs have 2"),
    "fewer sequences": (X, {"batch": 1}, "batch is 1, but the inputs have 2"),
    "batch of one": (X[0], {"batch": 4}, "batch is 4, but the inputs have 1"),
    "other features": (X, {"input_size": 4}, "input_size is 4, but the inputs have 3"),
    "vector": (X[0, 0], {}, "inputs have shape (3,), expected (T, d) or (B, T, d)"),
    "too deep": (X[None], {}, "inputs have shape (1, 2, 9, 3)"),
    "no steps": (X[:, :0], {}, "inputs have shape (2, 0, 3)"),
    "nan": (np.where(X[1, 2, 0] == X, np.nan, X), {}, "inputs holds nan at index [1, 2, 0]"),
    "infinite": (np.full((2, 2), np.inf), {}, "inputs holds inf at index [0, 0]"),
    "complex": (X * 1j, {}, "inputs has dtype complex128, expected real numbers"),
    "objects": (np.array([[object()]]), {}, "inputs has dtype object"),
    "strings": ([["a"]], {}, "inputs has dtype <U1"),
    "structured": (np.zeros((2, 2), [("a", "u1"), ("b", "u1")]), {}, "expected real numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], {}, "inputs is no array"),
    "none": (None, {}, "inputs has dtype object, expected real numbers (float, int or bool): convert it"),
    "masked": (np.ma.masked_less(X, 0), {}, "inputs is a masked array, expected real numbers"),
    "beyond float32": (np.full((2, 2), 1e39), {"dtype": "float32"}, "inputs goes beyond float32"),
}


@pytest.mark.parametrize("name", REFUSED_INPUTS)
def test_inputs_that_cannot_be_meant(name):
    given, options, expected = REFUSED_INPUTS[name]
    assert expected in refusal(inputs=given, hidden=4, **options)


def test_files_of_several_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", a=X, b=X)
    assert f"holds 2 arrays (a, b): say which, as in {tmp_path}/x.npz:a" in refusal(inputs=tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", X)
    assert f"but the inputs {tmp_path}/x.npy have 3" in refusal(inputs=tmp_path / "x.npy", input_size=4)
    assert "holds no array 'c', expected one of a, b" in refusal(inputs=f"{tmp_path}/x.npz:c")


def test_inputs_must_fit_the_checkpoint(tmp_path):
    path, _ = checkpoint(tmp_path)
    np.testing.assert_array_equal(make_problem(layer=read_layer(path), inputs=X).system.inputs, X)
    message = refusal(layer=read_layer(path), inputs=X[:, :, :2])
    assert "its input size is 3, but the inputs have 2: they must agree" in message


# Options

REFUSED = {
    "no units": ({"hidden": 0}, "hidden is 0, expected a whole number, at least 1"),
    "half a unit": ({"hidden": 2.5}, "hidden is 2.5, expected a whole number"),
    "yes": ({"batch": True}, "batch is True, expected a whole number"),
    "words": ({"steps": "many"}, "steps is 'many', expected a whole number"),
    "backwards": ({"steps": -1}, "steps is -1, expected a whole number, at least 1"),
    "no inputs": ({"input_size": 0}, "input_size is 0"),
    "googol": ({"hidden": 10**100}, "hidden is 1000000"),
    "negative seed": ({"seed": -1}, "seed is -1, expected a whole number, at least 0"),
    "no seed": ({"seed": None}, "seed is None"),
    "negative gain": ({"gain": -0.5}, "gain is -0.5, expected a finite number, at least 0"),
    "nan gain": ({"gain": math.nan}, "gain is nan"),
    "infinite gain": ({"gain": math.inf}, "gain is inf"),
    "gain in words": ({"gain": "2"}, "gain is '2', expected a finite number"),
    "gain of lists": ({"gain": [1, 2]}, "gain is [1, 2]"),
    "huge whole gain": ({"gain": 10**400}, "gain is 1000000"),
    "gain beyond float64": ({"gain": 1.7e308, "init": "gaussian", "hidden": 2}, "goes beyond float64"),
    "gain beyond float32": (
        {"gain": 1e39, "init": "identity", "dtype": "float32"},
        "R_z goes beyond float32",
    ),
    "infinite bias": ({"biases": {"b_f": math.inf}}, "bias b_f is inf, expected a finite number"),
    "unknown bias": (
        {"biases": {"b_q": 1.0}},
        "cell lstm has no bias b_q: its biases are b_z, b_i, b_f, b_o",
    ),
    "unknown cell": ({"cell": "lsmt"}, "unknown cell 'lsmt': did you mean lstm"),
    "no cell": ({"cell": 5}, "cell is 5, expected a name or a gradscope.Cell"),
    "no module": ({"cell": "no.such:thing"}, "cell 'no.such:thing': ModuleNotFoundError"),
    "unknown init": ({"init": "pytroch"}, "unknown init 'pytroch': did you mean pytorch?"),
    "init of a list": ({"init": ["keras"]}, "init is ['keras'], expected a name"),
    "unknown view": ({"view": "cells"}, "view is 'cells', expected state or cell"),
    "unknown dtype": ({"dtype": "float16"}, "dtype is 'float16', expected float64 or float32"),
    "dtype of NumPy": ({"dtype": np.float32}, "expected float64 or float32"),
    "unknown path": (
        {"cut": ("R_q",)},
        "cut 'R_q': not a path of cell lstm in view 'state': it has carousel, R_z",
    ),
    "one by one": ({"cut": ("R", "_", "o")}, "cut 'R': not a path"),
    "everything": ({"cell": "rnn", "cut": "R"}, "cut R: nothing is left of cell rnn, keep at least one path"),
    "cell view of a gru": (
        {"cell": "gru", "view": "cell"},
        "chain of an LSTM's cell state, cell gru has none",
    ),
    "cell view of one step": ({"view": "cell", "steps": 1}, "expected steps of at least 2, got 1"),
    "R_o in the cell view": ({"view": "cell", "cut": ("R_o",)}, "it has carousel, R_z, R_i, R_f"),
    "all of the cell view": ({"view": "cell", "cut": ("carousel", "R_z", "R_i", "R_f")}, "nothing is left"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_cannot_be_meant(name):
    options, expected = REFUSED[name]
    assert expected in refusal(**(SMALL | options))


@pytest.mark.parametrize("option", [{"hidden": 4}, {"input_size": 3}, {"init": "keras"}])
def test_options_that_a_checkpoint_settles(option, tmp_path):
    path, _ = checkpoint(tmp_path)
    (name,) = option
    message = refusal(layer=read_layer(path), **option)
    assert message.startswith(f"{name} is ")
    assert f"but the checkpoint brings its own: leave {name} out" in message


def test_cuts():
    assert make_problem(cut=("R_o", "carousel", "R_o"), **SMALL).cut == ("R_o", "carousel")
    assert make_problem(cut="R_o", **SMALL).cut == ("R_o",)
    assert make_problem(cell="lstm-peephole", view="cell", cut=("p_f", "p_i", "R_f"), **SMALL).view == "cell"
    pathless = Cell("pathless", find("rnn").parameters, lambda p, x, h: h)
    assert make_problem(cell=pathless, **SMALL).cut == ()
    assert "it has no named paths" in refusal(cell=pathless, cut=("state",), **SMALL)


@pytest.mark.parametrize("cell", [name for name in CELLS if name.startswith("lstm")])
def test_cell_view_of_the_lstm_family(cell):
    assert make_problem(cell=cell, view="cell", **SMALL).view == "cell"


def test_numpy_numbers_are_numbers():
    problem = make_problem(
        hidden=np.int32(4), input_size=np.uint8(3), steps=np.int64(5), gain=np.float32(0.5)
    )
    assert json.dumps(described(problem, "cpu"))
    assert problem.system.hidden == 4


# Memory


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 10**6},
        {"hidden": 2**40},
        {"input_size": 10**12},
        {"steps": 10**11},
        {"batch": 10**11},
        {"cell": "gru-reset-before", "hidden": 50000},
        {"inputs": "zeros", "steps": 2**62, "batch": 2**62},
    ],
    ids=str,
)
def test_what_no_machine_can_hold_is_refused_before_memory_is_taken(options, monkeypatch):
    monkeypatch.setattr("gradscope.problem.subject.initialize", None)
    message = refusal(**options)
    assert "GiB, this machine has" in message


def test_the_limit_is_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr(machine, "_physical_memory", lambda: 10**5)
    assert "GiB, this machine has 0" in refusal(hidden=64)
    monkeypatch.undo()
    assert make_problem(hidden=256, steps=1000, inputs="zeros").system.hidden == 256


def test_a_machine_that_does_not_tell_its_memory(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert "this machine has 16" in refusal(hidden=10**6)
