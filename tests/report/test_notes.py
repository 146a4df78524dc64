"""Notes: each number against a closed form, and nothing of a healthy network."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.layouts import recurrent
from safetensors.numpy import save_file

import gradscope


@pytest.fixture
def notes(tmp_path):
    """Of a cell with these parameters on these inputs."""

    def found(cell, parameters, inputs, **options):
        path = tmp_path / "cell.npz"
        np.savez(path, **{name: np.asarray(value, float) for name, value in parameters.items()})
        return gradscope.analyze(
            checkpoint=path, cell=cell, inputs=np.asarray(inputs, float), **options
        ).verdict.notes

    return found


def lstm(n=4, **changed):
    zero = {f"{kind}_{gate}": np.zeros((n, n) if kind != "b" else n) for kind in "WRb" for gate in "zifo"}
    return zero | {name: np.broadcast_to(value, zero[name].shape) for name, value in changed.items()}


def scalar(weight):
    """A linear unit that reads nothing: its gain at lag k is weight ** k, its state too from 1."""
    return {"W": [[0.0]], "R": [[weight]], "b": [0.0], "h0": [1.0]}


def signs(steps, features, size):
    return size * np.sign(np.random.default_rng(0).normal(size=(steps, features)))


EYE = np.eye(4)


@pytest.mark.parametrize("top", [pytest.param(None, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize(
    ("parameters", "size", "cause"),
    [
        ({f"W_{g}": EYE for g in "zifo"}, 1000, "inputs are of size 1000; normalise them"),
        ({f"W_{g}": 50 * EYE for g in "zifo"}, 2, "W x is of size 100, inputs of 2; scale the input weights"),
        ({f"b_{g}": np.array([-40.0, 40, -40, 40]) for g in "ifo"}, 1, "biases are of size 40; smaller ones"),
    ],
)
def test_saturated_gates_and_why(notes, parameters, size, cause, top):
    found = notes("lstm", lstm(**parameters), signs(8, 4, size), top=top)
    (note,) = (note for note in found if "saturated" in note)
    assert note.startswith(f"Gates are saturated 100 %: {cause}")


def test_gates_that_the_state_saturates(notes):
    # z is 1, so that h stays where it is: R h is 30 at every step.
    parameters = {f"{kind}_{gate}": np.zeros((2, 2)) for kind in "WR" for gate in "rzh"}
    parameters |= {f"b_{gate}": np.zeros(2) for gate in "rzh"} | {"c_h": np.zeros(2), "h0": np.ones(2)}
    parameters |= {"R_r": 30 * np.eye(2), "R_z": 30 * np.eye(2)}
    found = notes("gru", parameters, signs(12, 2, 1))
    assert any(note.startswith("Gates are saturated 100 %: R h is of size 30;") for note in found)


@pytest.mark.slow
def test_a_remedy_is_named_once():
    found = gradscope.analyze(cell="lstm-relu", hidden=8, steps=30, gain=300, only="gain").verdict.notes
    assert [note[:12] for note in found if note.startswith(("Gates are", "A state"))] == [
        "Gates are sa",
        "A state leav",
    ]
    assert sum(note.count("scale the recurrent matrices down") for note in found) == 1
    assert any("infinity or NaN from then on." in note for note in found)


@pytest.mark.parametrize("top", [None, 1])
def test_a_state_at_rest(notes, top):
    resting = {"W": EYE, "R": EYE, "b": np.zeros(4)}
    (note,) = notes("rnn", resting, np.zeros((20, 4)), top=top)
    assert note.startswith("The state never leaves a fixed point")
    assert "its inputs are 0" in note
    assert not notes("rnn", resting, signs(20, 4, 0.1), top=top)


@pytest.mark.parametrize("top", [None, 1])
def test_dead_units_are_counted(notes, top):
    parameters = {"W": np.eye(5), "R": 0.9 * np.eye(5), "b": [0.5, -1e3, 0.5, -1e3, -1e3]}
    found = notes("rnn-relu", parameters, signs(40, 5, 1), top=top)
    assert next(note for note in found if "dead" in note).startswith("3 of 5 units are dead")
    alive = notes("rnn-relu", parameters | {"b": np.full(5, 0.5)}, signs(40, 5, 1), top=top)
    assert not any("dead" in note for note in alive)


def test_units_that_put_out_one_number(notes):
    found = notes("rnn", {"W": EYE, "R": 0 * EYE, "b": [0.0, 0, 50, -50]}, signs(40, 4, 1))
    assert any(note.startswith("2 of 4 units put out the same number at every step") for note in found)


@pytest.mark.parametrize(("gate", "words"), [("i", "written to them"), ("o", "read of them")])
def test_gates_that_never_open(notes, gate, words):
    found = notes("lstm", lstm(W_z=EYE, **{f"b_{gate}": np.array([0.0, -6, 0, -6])}), signs(40, 4, 1))
    (note,) = (note for note in found if "never opens" in note)
    assert note.startswith("Of 2 of 4 units")
    assert words in note
    assert f"raise b_{gate}" in note


@pytest.mark.parametrize(
    ("weight", "steps", "words"),
    [
        # float32 ends at 2^-126 and 2^128.
        (0.5, 200, "In float32 a gradient of size 1 underflows from lag 127 on."),
        (2.0, 200, "In float32 a gradient of size 1 overflows from lag 128 on."),
        (0.5, 50, "At this rate a gradient of size 1 underflows in float32 after about 126 steps."),
        (2.0, 50, "At this rate a gradient of size 1 overflows in float32 after about 128 steps."),
    ],
)
def test_the_lag_at_which_float32_ends(notes, weight, steps, words):
    assert words in notes("linear", scalar(weight), np.ones((steps, 1)))


def test_the_lag_at_which_float32_ends_of_a_bare_chain():
    from gradscope.api import analyze_chain

    found = analyze_chain(np.full((300, 1, 1), 0.5), "chain.npy")
    assert found.verdict.notes == ("In float32 a gradient of size 1 underflows from lag 127 on.",)
    assert found.to_dict()["verdict"]["notes"] == list(found.verdict.notes)


@pytest.mark.parametrize("top", [None, 1])
def test_the_step_at_which_a_state_leaves_float32(notes, top):
    found = notes("linear", scalar(2.0), np.ones((130, 1)), top=top)
    assert any(note.startswith("A state leaves float32 (3.4e38) at step 128:") for note in found)
    before = notes("linear", scalar(2.0), np.ones((127, 1)), top=top)
    assert not any("leaves float32" in note for note in before)


def test_the_lag_at_which_a_loss_ends_in_float32(notes):
    found = notes("linear", scalar(0.5), np.ones((200, 1)), adjoint=np.ones(1))
    assert "In float32 the loss' gradient underflows from lag 127 on." in found


def test_rounding_that_grows_with_the_state_is_no_chaos(notes):
    still = notes("linear", scalar(10.0) | {"h0": [0.0]}, np.ones((14, 1)))
    assert any("14 of the 16 digits" in note for note in still)
    assert not any("digits" in note for note in notes("linear", scalar(10.0), np.ones((14, 1))))


def test_notes_of_layers_say_which(tmp_path):
    arrays = recurrent("lstm", 4, 6, layers=2)
    arrays["bias_ih_l1"] = np.where(np.arange(24) < 12, 60, -60).astype("float32")
    save_file(arrays, tmp_path / "two.safetensors")
    found = gradscope.analyze(checkpoint=tmp_path / "two.safetensors", inputs=signs(25, 4, 1))
    said = "Gates are saturated 100 %: biases are of size 60; smaller ones leave the gates a slope."
    assert f"layer1: {said}" in found.verdict.notes
    assert said in found.layers[1].verdict.notes
    assert not any("saturated" in note for note in found.layers[0].verdict.notes)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "rnn-relu"])
def test_nothing_is_noted_of_a_healthy_network(cell):
    found = gradscope.analyze(cell=cell, hidden=6, steps=25, init="orthogonal", input_size=6)
    if found.verdict.level == "stable":
        assert found.verdict.notes == ()
    else:
        assert all(note.startswith("At this rate") for note in found.verdict.notes)


@pytest.mark.slow  # the program of slopes below float64's is compiled
def test_slopes_too_small_for_float64_are_no_exact_zeros(notes):
    def said(cell, parameters, inputs, **options):
        return any("are 0 in" in note for note in notes(cell, parameters, inputs, **options))

    # Those of the view of c are of float64; those of the whole state have an exponent of their own.
    shut = lstm(W_i=np.eye(4), b_f=-900.0)
    assert said("lstm", shut, signs(4, 4, 400), view="cell")
    assert not said("lstm", shut, signs(4, 4, 400))
    parameters = {"W": np.eye(3), "R": 0.5 * np.eye(3), "b": np.zeros(3)}
    assert not said("rnn", parameters, signs(4, 3, 60), dtype="float32")
    assert not said("rnn", parameters, signs(4, 3, 300))


@pytest.mark.parametrize("top", [None, 1])
def test_of_a_state_that_leaves_float64_the_step_is_told(notes, top):
    # 4 * 2^2t is beyond 2^1024 from t = 511 on; the slopes of what is no number would be zeros: VANISHING.
    cell = {"W": [[0.0]], "R": [[4.0]], "b": [0.0], "h0": [4.0]}
    found = notes("rnn-relu", cell, np.ones((600, 1)), top=top)
    assert any("leaves float64 (1.8e308) at step 511. What is measured" in note for note in found)
    assert any("overflows from lag 64 on" in note for note in found)
    says = r"infinite or NaN in float64 after step 2, .* fewer than 2"
    with pytest.raises(gradscope.InputError, match=says):
        notes("rnn-exponential", cell, np.ones((600, 1)), top=top)
    found = notes("rnn-relu", cell, np.ones((510, 1)), top=top)
    assert any("overflows from lag 64 on" in note for note in found)
