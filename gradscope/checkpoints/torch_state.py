"""PyTorch state dicts in ``.safetensors`` files: one layer of LSTM, GRU or RNN, or one of their cells."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradscope.cells import find
from gradscope.cells.base import Cell
from gradscope.checkpoints import native
from gradscope.checkpoints.layer import Layer, assemble
from gradscope.errors import InputError
from gradscope.files import Array, about, as_float64, listed, read_safetensors

# lstm.weight_ih_l0, encoder.gru.bias_hh_l1_reverse, weight_hh (LSTMCell), lstm.weight_hr_l0 (proj_size)
_TENSOR = re.compile(
    r"(?P<prefix>.*\.|)(?P<role>(weight|bias)_(ih|hh|hr))(?P<layer>(_l\d+)?(_reverse)?)", re.S
)


@dataclass(frozen=True)
class _Family:
    """A kind of recurrent layer in torch: its gates in the order of the rows, the cells it may be."""

    gates: tuple[str, ...]
    cells: tuple[str, ...]


# By how many blocks of H rows weight_hh (G H, H) has. For RNN tanh or relu is not in the file.
_FAMILIES = {
    4: _Family(("i", "f", "z", "o"), ("lstm",)),
    3: _Family(("r", "z", "h"), ("gru",)),
    1: _Family(("",), ("rnn", "rnn-relu")),
}


def read(path: str | os.PathLike[str], cell: Cell | None) -> Layer:
    """The one recurrent layer in the file, wherever in the model it is, or a file with native keys."""
    arrays = read_safetensors(path, lambda names: _recurrent(names) or native.checked(names, cell))
    with about(path):
        if not any(map(_TENSOR.fullmatch, arrays)):
            return assemble(native.cell_of(arrays.keys(), cell), arrays)
        return _layer(arrays, cell)


def _recurrent(names: list[str]) -> list[str]:
    """The tensors of the one torch layer there is; none if there is none."""
    found = [match for name in names if (match := _TENSOR.fullmatch(name))]
    if not found:
        return []
    layers = sorted({match["prefix"] + match["layer"].lstrip("_") for match in found})
    if len(layers) > 1:
        raise InputError(
            f"holds {len(layers)} recurrent layers ({listed(layers)}), expected one: save it alone"
        )
    prefix = found[0]["prefix"]
    # What is left out of the sum must not be silent: weight norm's _g and _v, the bias of another library.
    strange = re.compile(re.escape(prefix) + r"(parametrizations\.)?(weight|bias)[^.]*(\.original\d)?")
    taken = {match.string for match in found if match["role"] != "weight_hr"}
    unknown = [name for name in names if name not in taken and strange.fullmatch(name)]
    if unknown:
        raise InputError(
            f"{listed(unknown)} beside {listed([found[0].string])}: expected weight_ih, weight_hh, bias_ih "
            "and bias_hh of a torch layer (no proj_size; remove weight norm before saving)"
        )
    return [match.string for match in found]


def _layer(arrays: Mapping[str, Array], cell: Cell | None) -> Layer:
    roles, name = {}, ""
    for key, array in arrays.items():
        match = _TENSOR.fullmatch(key)
        assert match is not None, "what _recurrent chose"
        roles[match["role"]], name = array, match["prefix"].rstrip(".")
    if {"weight_ih", "weight_hh"} - roles.keys() or ("bias_ih" in roles) != ("bias_hh" in roles):
        raise InputError(
            f"holds {listed(list(arrays))} alone, expected weight_ih and weight_hh, "
            "and bias_ih and bias_hh or neither"
        )
    blocks = _blocks(roles)
    family = _FAMILIES[blocks]
    parts = {role: np.split(array, blocks) for role, array in roles.items()}
    return assemble(_cell(family, cell), _native(parts, family), name)


def _blocks(roles: Mapping[str, Array]) -> int:
    """How many gates weight_hh (G H, H) has, with the rows of the others agreeing."""
    shape = roles["weight_hh"].shape
    blocks = shape[0] // shape[1] if len(shape) == 2 and shape[1] else 0
    if blocks not in _FAMILIES or shape[0] != blocks * shape[1]:
        raise InputError(
            f"weight_hh has shape {shape}, expected (4 H, H) of an LSTM, (3 H, H) of a GRU, (H, H) of an RNN"
        )
    for role, array in roles.items():
        axes = 2 if role.startswith("weight") else 1
        if array.ndim != axes or array.shape[0] != shape[0]:
            raise InputError(
                f"{role} has shape {array.shape}, expected {axes} axes and {shape[0]} rows as weight_hh"
            )
    return blocks


def _cell(family: _Family, given: Cell | None) -> Cell:
    if given is None:
        if len(family.cells) == 1:
            return find(family.cells[0])
        raise InputError(
            "holds a torch RNN, whose nonlinearity is not in the file: add --cell rnn or --cell rnn-relu"
        )
    if given.name not in family.cells:
        raise InputError(f"holds a torch layer that is {' or '.join(family.cells)}, not --cell {given.name}")
    return given


def _native(parts: Mapping[str, list[Array]], family: _Family) -> dict[str, Array]:
    """The arrays under our names; torch's two biases add, but for the GRU's inside the reset product."""
    arrays: dict[str, Array] = {}
    for k, gate in enumerate(family.gates):
        suffix = f"_{gate}" if gate else ""
        arrays["W" + suffix], arrays["R" + suffix] = parts["weight_ih"][k], parts["weight_hh"][k]
        if "bias_ih" in parts and family.cells == ("gru",) and gate == "h":
            arrays["b_h"], arrays["c_h"] = parts["bias_ih"][k], parts["bias_hh"][k]
        elif "bias_ih" in parts:
            with np.errstate(over="ignore"):  # as_float64 says so in a line
                total = parts["bias_ih"][k] + parts["bias_hh"][k]
            arrays["b" + suffix] = as_float64(total, "bias_ih + bias_hh")
    return arrays
