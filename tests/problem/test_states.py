"""Initial states, laid out as PyTorch's: in files or mappings, for one layer or several."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.asking import make_problem
from oracles.models import log10_values, read_layer
from oracles.refusals import refused
from safetensors.numpy import save_file

import gradscope
from gradscope.cells import find
from gradscope.cli.main import main
from gradscope.problem.initial_state import initial_states
from gradscope.report.provenance import described

RNG = np.random.default_rng(11)
X = RNG.standard_normal((3, 3, 3))
H, C = RNG.standard_normal((2, 3, 4))
LSTM = find("lstm").extents(4)
GRU = find("gru").extents(4)
BOTH = {"rnn.l0": LSTM, "rnn.l1": LSTM}


def saved(folder, form, **arrays):
    path = folder / f"s.{form}"
    if form == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


@pytest.mark.parametrize("form", ["npz", "safetensors", "mapping"])
def test_states_of_one_layer(form, tmp_path):
    given = {"h0": H, "c0": C} if form == "mapping" else saved(tmp_path, form, h0=H, c0=C)
    problem = make_problem(inputs=X, hidden=4, initial_state=given)
    np.testing.assert_array_equal(problem.system.state, np.concatenate([C, H], axis=1))
    assert described(problem, "cpu")["initial_state"] == ("array" if form == "mapping" else str(given))


@pytest.mark.parametrize("h", [H, H[None], H.tolist(), H.astype(np.float32)], ids=["2d", "3d", "list", "f4"])
def test_the_one_state_of_a_gru(h, tmp_path):
    expected = np.asarray(h, np.float64).reshape(3, 4)
    np.testing.assert_array_equal(
        make_problem(cell="gru", inputs=X, hidden=4, initial_state=h).system.state, expected
    )
    np.save(tmp_path / "h.npy", np.asarray(h))
    given = tmp_path / "h.npy"
    np.testing.assert_array_equal(
        make_problem(cell="gru", inputs=X, hidden=4, initial_state=given).system.state, expected
    )


def test_one_state_for_all_sequences():
    problem = make_problem(inputs=X, hidden=4, initial_state={"h0": H[0], "c0": C})
    np.testing.assert_array_equal(problem.system.state[:, 4:], [H[0]] * 3)
    np.testing.assert_array_equal(problem.system.state[:, :4], C)


def test_the_state_of_the_checkpoint_gives_way(tmp_path):
    arrays = {k: RNG.standard_normal(s) for k, s in find("lstm").parameters(4, 3).items()}
    np.savez(tmp_path / "x.npz", **arrays, h0=np.ones(4), c0=np.ones(4))
    own = make_problem(layer=read_layer(tmp_path / "x.npz"), inputs=X)
    np.testing.assert_array_equal(own.system.state, np.ones((3, 8)))
    given = make_problem(layer=read_layer(tmp_path / "x.npz"), inputs=X, initial_state={"h0": H, "c0": C})
    np.testing.assert_array_equal(given.system.state, np.concatenate([C, H], axis=1))


def test_states_of_several_layers():
    h, c = RNG.standard_normal((2, 2, 3, 4))
    found = initial_states({"h0": h, "c0": c}, BOTH, 3)
    assert list(found) == ["rnn.l0", "rnn.l1"]
    for k, state in enumerate(found.values()):
        np.testing.assert_array_equal(state, np.concatenate([c[k], h[k]], axis=1))
    alike = initial_states({"h0": h[:, 0], "c0": c[:, 0]}, BOTH, 3)
    np.testing.assert_array_equal(alike["rnn.l1"], [np.concatenate([c[1, 0], h[1, 0]])] * 3)


def test_states_by_name():
    found = initial_states({"rnn.l1.h0": H, "rnn.l1.c0": C[0]}, BOTH, 3)
    assert list(found) == ["rnn.l1"]
    np.testing.assert_array_equal(found["rnn.l1"][:, 4:], H)
    h, c = RNG.standard_normal((2, 2, 3, 4))
    found = initial_states({"rnn.l0.h0": H, "h0": h, "c0": c}, BOTH, 3)
    np.testing.assert_array_equal(found["rnn.l0"], np.concatenate([c[0], H], axis=1))
    np.testing.assert_array_equal(found["rnn.l1"], np.concatenate([c[1], h[1]], axis=1))


def test_layers_of_different_kinds_and_sizes():
    """h0 is of both, c0 of the one that has it; sizes that differ need the names."""
    mixed = {"a": LSTM, "b": GRU}
    h = RNG.standard_normal((2, 3, 4))
    found = initial_states({"h0": h, "c0": C}, mixed, 3)
    np.testing.assert_array_equal(found["a"], np.concatenate([C, h[0]], axis=1))
    np.testing.assert_array_equal(found["b"], h[1])
    projected = {"c": slice(0, 4), "h": slice(4, 6)}
    found = initial_states({"h0": H[:, :2], "c0": C}, {"": projected}, 3)[""]
    np.testing.assert_array_equal(found, np.concatenate([C, H[:, :2]], axis=1))
    uneven = {"a": GRU, "b": find("gru").extents(5)}
    assert "of layers of different sizes NAME.h0 is one's own" in refused(
        initial_states, {"h0": h}, uneven, 3
    )


@pytest.mark.parametrize("backward", [False, True])
def test_the_chain_starts_there(backward, tmp_path):
    state = layouts.recurrent("lstm", 3, 4, bidirectional=True, scale=4, dtype="float64")
    layouts.saved(state, tmp_path / "m.pt")
    direction = int(backward)
    p = layouts.equations_of("lstm", state, ("_l0", "_l0_reverse")[direction])
    x = X[0, ::-1] if backward else X[0]
    _, jacobian = equations.trajectory_jacobian("lstm", p, x, np.concatenate([C[0], H[0]]))
    analysis = gradscope.analyze(
        checkpoint=tmp_path / "m.pt",
        layer=("l0", "l0_reverse")[direction],
        inputs=X,
        initial_state={"h0": H, "c0": C},
    )
    ours = analysis.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(ours, log10_values(jacobian), rtol=0, atol=1e-6)
    jsonschema.validate(analysis.to_dict(), gradscope.schema())


def test_on_the_command_line(tmp_path, capfd):
    path = saved(tmp_path, "npz", h0=H[0], c0=C[0])
    arguments = ["analyze", "--initial-state", str(path), "--hidden", "4", "--steps", "5"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["problem"]["initial_state"] == str(path)
    assert main([*arguments, "-o", str(path)]) == 2
    assert "is a file to be read, choose another" in capfd.readouterr().err


REFUSED = {
    "other features": ({"h0": H[:, :3], "c0": C}, "h0 has shape (3, 3), expected (4,) or (3, 4)"),
    "other batch": ({"h0": H[:2], "c0": C}, "h0 has shape (2, 4), expected (4,) or (3, 4)"),
    "two layers": ({"h0": np.stack([H, H]), "c0": C}, "h0 has shape (2, 3, 4), expected (4,) or (3, 4)"),
    "a number": ({"h0": 1.0, "c0": C}, "h0 has shape (), expected (4,) or (3, 4)"),
    "no cell state": ({"h0": H}, "initial state has h0 of the cell but not c0: give all of them"),
    "an array alone": (H, "initial state has h0 of the cell but not c0: give all of them"),
    "unknown": ({"h": H}, "initial state has 'h', expected c0, h0"),
    "of another layer": ({"rnn.h0": H}, "initial state has 'rnn.h0', expected c0, h0"),
    "nothing": ({}, "initial state is empty, expected h0 and, for an LSTM, c0"),
    "nan": ({"h0": H * np.nan, "c0": C}, "initial state h0 holds nan at index [0, 0]"),
    "words": ({"h0": ["a"], "c0": C}, "initial state h0 has dtype <U1"),
    "key of no text": ({3: H}, "initial state has '3', expected c0, h0"),
    "no file": ("s.txt", "'s.txt': expected a .npy, .npz, .safetensors or .csv file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_states_that_cannot_be_meant(name):
    given, expected = REFUSED[name]
    message = refused(make_problem, inputs=X, hidden=4, initial_state=given)
    assert expected in message


def test_a_cell_alone_has_no_names():
    message = refused(make_problem, inputs=X, hidden=4, initial_state={"h": H})
    assert message == "initial state has 'h', expected c0, h0"


def test_the_layers_are_named_where_a_key_is_not():
    message = refused(initial_states, {"l2.h0": H}, BOTH, 3)
    expected = "expected c0, h0, or rnn.l0.c0, rnn.l0.h0, rnn.l1.c0, rnn.l1.h0"
    assert message == f"initial state has 'l2.h0', {expected}"
    message = refused(initial_states, {"h0": H, "c0": C}, BOTH, 3)
    assert "h0 has shape (3, 4), expected (2, 4) or (2, 3, 4) for 2 layers" in message
