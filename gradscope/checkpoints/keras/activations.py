"""Keras' activations, as a config and a version tell them, under the names that the cells have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

from gradscope.cells.activated import ACTIVATIONS, with_activations

# Those of Keras that go by another name here, or whose parameters Keras has itself.
_NAMES = {"hard_swish": "hard_silu", "leaky_relu": "leaky_relu=0.2", "swish": "silu"}
_NOT_OF_KERAS = {"affine", "gelu_tanh", "scaled_tanh", "thresholded_relu"}
# Which mix the units, so that one has no slope of its own.
_MIXING = {"glu", "log_softmax", "softmax", "sparsemax"}
# Layers as activations: of ours, the parameter, what Keras calls it, and what it is where it is not said.
_LAYERS = {"ELU": ("elu", ("alpha",), 1.0), "LeakyReLU": ("leaky_relu", ("negative_slope", "alpha"), 0.3)}
# Of which a file has the code, and no name.
_LAMBDA = "lambda"
# Until then Keras, and TensorFlow 1 with it, made LSTM and GRU with gates of hard_sigmoid.
_SIGMOID_SINCE = (2, 3)
_HARD = {2: "hard_sigmoid=0.2", 3: "hard_sigmoid=1/6"}
_EQUATIONS = {2: "clip(x / 5 + 1 / 2, 0, 1)", 3: "relu6(x + 3) / 6"}


def activation_in(config: Any) -> str:
    """The name of an activation in a config: a string, or the description of a function or a layer."""
    if not isinstance(config, dict):
        return "linear" if config is None else str(config)
    kind, given = config.get("class_name"), config.get("config")
    if isinstance(given, dict):
        ours, names, usual = _LAYERS.get(str(kind), ("", (), 0.0))
        slope = next((given[name] for name in names if name in given), usual)
        return f"{ours}={slope!r}" if ours and isinstance(slope, int | float) else f"layer {kind}"
    return _LAMBDA if kind is None else str(given)


def activated_cells(
    bases: Sequence[str], activation: str, gate: str, version: str
) -> tuple[tuple[str, ...], str, str]:
    """The cells that layers of ``bases`` with these activations are, what is open, and why there is none."""
    states, gates = _ours(activation, version), _ours(gate, version) if gate else ("",)
    said = f"activation {activation}" + (f" and recurrent activation {gate}" if gate else "")
    if not states or not gates:
        mixing = sorted({activation, gate} & _MIXING)
        why = f", and {mixing[0]} mixes the units" if mixing else ""
        if _LAMBDA in (activation, gate):
            why = ": its code is in the file, and none of a file is run: give the model itself, with a batch"
        return (), "", f"has {said}, for which gradscope has no {bases[0]}{why}"
    every = product(bases, states, gates)
    cells = tuple(with_activations(base, [state, *[one] * bool(one)]) for base, state, one in every)
    question = f"has {said}, and does not say which Keras computes it: "
    hard = [
        f"--cell {cell} is Keras {k}'s {_EQUATIONS[k]}" for k in _HARD for cell in cells if _HARD[k] in cell
    ]
    return cells, question + "; ".join(hard) if len(states) * len(gates) > 1 else "", ""


def _ours(activation: str, version: str) -> tuple[str, ...]:
    """What it may be here, () if it is none; several where that depends on a version which is not known."""
    if activation == "hard_sigmoid":
        known = _HARD.get((_numbers(version) or (0,))[0])
        return (known,) if known else tuple(_HARD.values())
    name = _NAMES.get(activation, activation)
    kind, given, _ = name.partition("=")
    return (
        (name,)
        if kind in ACTIVATIONS.keys() - _NOT_OF_KERAS and (given or None not in ACTIVATIONS[kind])
        else ()
    )


def usual_gate(version: str) -> str:
    """The recurrent activation of layers that were made without saying one."""
    return "hard_sigmoid" if (_numbers(version) or _SIGMOID_SINCE) < _SIGMOID_SINCE else "sigmoid"


def question(kind: str, cells: Sequence[str], version: str) -> str:
    """What is to be decided of the weights of an LSTM, a GRU or an RNN, and how."""
    what = "holds weights without the config that says its activations"
    if kind == "rnn":
        return f"{what}: add --activation tanh, relu, sigmoid or linear (or --cell rnn-softsign, or its like)"
    if usual_gate(version) == "sigmoid":
        plain = f"add --cell {' or '.join(cells)}"
        return f"{what}: {plain} if these are tanh and sigmoid, --cell {cells[0]}-relu or its like if not"
    return f"{what}: {choice(cells, version)}"


def choice(cells: Sequence[str], version: str) -> str:
    """What to add for a layer that computes as Keras makes one that is told nothing."""
    plain = f"--cell {' or '.join(cells)}"
    if usual_gate(version) == "sigmoid" or any(cell.startswith("rnn") for cell in cells):
        return f"add {plain}"
    usual = [with_activations(cell, ["tanh", _HARD[2]]) for cell in cells]
    return (
        f"Keras {version} makes gates of hard_sigmoid, {_EQUATIONS[2]}, unless told otherwise: add "
        f"--cell {' or '.join(usual)}; {plain} is right only where the model says "
        "recurrent_activation='sigmoid'"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 2) of "2.2.4-tf"; () where that says nothing: TensorFlow 2 came with that very version too."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match and version != "2.2.4-tf" else ()
