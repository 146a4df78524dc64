"""What a refusal offers, followed as a user would: inspect shows the same line, every option leads on."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest
from oracles import layouts
from oracles.foreign import frozen_graph
from oracles.layouts import drawn

from gradscope import checkpoints
from gradscope.cells import find
from gradscope.checkpoints.array_map import rules_of
from gradscope.errors import InputError

N, D = 4, 3


def keras(weights, bias=1, **attributes):
    """Weights of Keras 2 without their config; bias : how many lie in it."""

    def write(path):
        path = path.with_suffix(".h5")
        with h5py.File(path, "w") as file:
            file.attrs.update(attributes)
            shapes = {
                "kernel": (D, weights * N),
                "recurrent_kernel": (N, weights * N),
                "bias": (bias * weights * N,),
            }
            for role, shape in shapes.items():
                file[f"rnn_1/rnn_1/{role}:0"] = drawn({role: shape}, 0.5, 0)[role]
        return path

    return write


def arrays(shapes):
    def write(path):
        np.savez(path.with_suffix(".npz"), **drawn(shapes, 0.5, 0))
        return path.with_suffix(".npz")

    return write


def torch(**state):
    return lambda path: layouts.saved(state, path.with_suffix(".safetensors"))


def frozen(shapes):
    def write(path):
        path.with_suffix(".pb").write_bytes(frozen_graph(drawn(shapes, 0.5, 0)))
        return path.with_suffix(".pb")

    return write


GRU = {
    "gates/kernel": (D + N, 2 * N),
    "gates/bias": (2 * N,),
    "candidate/kernel": (D + N, N),
    "candidate/bias": (N,),
}
FLAX = {f"{x}{g}/kernel": (D if x == "i" else N, N) for x in "ih" for g in "ifgo"}
GATES = {"weights": (D, N), "recurrent_weights": (N, N), "bias": (N,)}
PEEPHOLES = {f"{k}_{g}": {"W": (N, D), "R": (N, N), "b": (N,)}[k] for k in "WRb" for g in "zifo"}

# Every kind of question that a file leaves open.
OPEN = {
    "nonlinearity of PyTorch": torch(**layouts.recurrent("rnn", D, N)),
    "class of the user's own": torch(
        **{k.removesuffix("_l0"): a for k, a in layouts.recurrent("lstm", D, N).items()},
        ln_ih=np.ones(N, np.float32),
    ),
    "activations of Flax": arrays({**FLAX, **{f"h{g}/bias": (N,) for g in "ifgo"}}),
    "activation of a Flax RNN": arrays({"i/kernel": (D, N), "h/kernel": (N, N), "h/bias": (N,)}),
    "activations of Keras": keras(4),
    "activations of old Keras": keras(4, keras_version="2.2.0"),
    "activation of a Keras RNN": keras(1),
    "layout of CuDNNLSTM": keras(4, 2),
    "layout of CuDNNGRU": keras(3, 2),
    "activation of TensorFlow": frozen({f"rnn/gru_cell/{key}": shape for key, shape in GRU.items()}),
    "activation of a TensorFlow RNN": frozen(
        {"basic_rnn_cell/kernel": (D + N, N), "basic_rnn_cell/bias": (N,)}
    ),
    "forget bias of TensorFlow": arrays({"lstm_cell/kernel": (D + N, 4 * N), "lstm_cell/bias": (4 * N,)}),
    "cell of our own names": arrays({**PEEPHOLES, "p_i": (N,), "p_f": (N,), "p_o": (N,)}),
    "order of gates": arrays({"w_ih": (4 * N, D), "w_hh": (4 * N, N), "b": (4 * N,)}),
    "update gate": arrays({f"l.{g}.{k}": s for g in ("reset", "update", "new") for k, s in GATES.items()}),
}


def offered(line):
    """The choices that a line offers: keyword arguments of ``read``."""
    both = re.search(r"with --cell (\S+) as well", line)
    for rules in re.findall(r"--map '([^']*)'", line):
        yield {"rules": rules_of(rules)}
        if both:
            yield {"rules": rules_of(rules), "cell": both[1]}
    line = re.sub(r"--map '[^']*'|with --cell \S+ as well", "", line)
    for name in re.findall(r"--cell ([\w.=-]*\w)", line):
        yield {"cell": name}
    for name in re.findall(r"--layout (\w+)", line):
        yield {"layout": name}
    for names in re.findall(r"--activation ((?:\w+(?:, | or )?)+)", line):
        yield from (
            {"activation": name} for name in re.split(", | or ", names) if name in checkpoints.ACTIVATIONS
        )


@pytest.mark.parametrize("name", OPEN)
def test_every_option_that_a_question_offers(name, tmp_path, run):
    path = OPEN[name](tmp_path / "x")
    (layer,) = json.loads(run("inspect", path, "--json")[1])["layers"]
    shown = layer["problem"] or layer["open"]
    code, _, err = run("analyze", path)
    assert (code, err) == (2, f"gradscope: error: {path}: {shown}\n")
    choices = list(offered(shown))
    assert choices
    layers = [checkpoints.read(path, **choice).layers[0] for choice in choices]
    for choice, one in zip(choices, layers, strict=True):
        assert one.cell.name == choice.get("cell", one.cell.name)
        assert (one.hidden, one.input_size) == (N, D)
        assert one.assumed or "cell" in choice or "activation" in choice
    # What is offered twice in other words is one thing, all else differs.
    different = {(one.cell.name, *(a.tobytes() for a in one.parameters.values())) for one in layers}
    assert len(different) >= len(choices) - 1


@pytest.mark.parametrize("name", OPEN)
def test_an_activation_answers_no_other_question(name, tmp_path):
    """It decides between cells that differ in it: not what gates are, nor how arrays lie."""
    path = OPEN[name](tmp_path / "x")
    (found,) = checkpoints.read_all(path).layers
    if len(found.cells) > 1:
        return
    for activation in checkpoints.ACTIVATIONS:
        with pytest.raises(InputError):
            checkpoints.read(path, activation=activation)


def test_every_cell_of_the_help_is_found():
    for name in ("lstm-tanh-hard_sigmoid=0.2", "gru-reset-before"):
        assert find(name).name == name
