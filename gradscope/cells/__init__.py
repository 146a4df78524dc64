"""Recurrent cells by name: step, paths, initial parameters.

Public: ``find``, ``check_known``, ``CELLS``, ``cell.Cell``, ``initializers.initialize``, ``stack.stacked``.
"""

from __future__ import annotations

import difflib
import importlib
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from gradscope.cells.activated import ACTIVATIONS, USUAL, canonical, parts
from gradscope.errors import InputError, as_option

if TYPE_CHECKING:
    from gradscope.cells.cell import Cell

# name -> module:factory, so that naming a cell (help, messages) imports no JAX.
CELLS = {
    "linear": "gradscope.cells.rnn:linear",
    "rnn": "gradscope.cells.rnn:elman",
    "rnn-relu": "gradscope.cells.rnn:relu",
    "rnn-sigmoid": "gradscope.cells.rnn:sigmoid",
    "lstm": "gradscope.cells.lstm:lstm",
    "lstm-1997": "gradscope.cells.lstm:original",
    "lstm-peephole": "gradscope.cells.lstm:peephole",
    "lstm-nig": "gradscope.cells.lstm:nig",
    "lstm-nfg": "gradscope.cells.lstm:nfg",
    "lstm-nog": "gradscope.cells.lstm:nog",
    "lstm-niaf": "gradscope.cells.lstm:niaf",
    "lstm-noaf": "gradscope.cells.lstm:noaf",
    "lstm-cifg": "gradscope.cells.lstm:cifg",
    "gru": "gradscope.cells.gru:gru",
    "gru-reset-before": "gradscope.cells.gru:reset_before",
}

# Of these there is one for every number that follows: lstm-projected-P has an output of P features.
FAMILIES = {"lstm-projected": "gradscope.cells.lstm:projected"}
# Of these one for every epsilon of their norms: lstm-layernorm=1e-3, and lstm-layernorm with torch's own.
NORMED = ("lstm-layernorm", "lstm-layernorm-carried", "lstm-layernorm-gates")
_LAYER_NORM = "gradscope.cells.layernorm:layer_normed"
_NORMED = re.compile(r"lstm-layernorm(?:-(carried|gates))?(?:=(\d{1,9}(?:\.\d{0,15})?(?:e-?\d{1,2})?))?")
_MEMBER = re.compile(r"(.+)-([1-9]\d{0,5})")


def find(name: str) -> Cell:
    """The cell called ``name``; raises InputError with the nearest names if there is none."""
    return _load(name) if ":" in name else _built_in(canonical(name))


def check_known(name: str) -> None:
    """Raise InputError for the name of no cell; of one of the user's own nothing is imported for it."""
    if ":" not in name:
        _factory(canonical(name))


@cache
def _built_in(name: str) -> Cell:
    """One object for one name: JAX compiles for a cell once."""
    cell = _load(*_factory(name))
    # One object for one number too, however it is written.
    return cell if cell.name == name or not _NORMED.fullmatch(name) else find(cell.name)


def _factory(name: str) -> tuple[Any, ...]:
    """The module:factory of a built-in cell, and what it is called with."""
    member = _MEMBER.fullmatch(name)
    if member and member[1] in FAMILIES:
        return FAMILIES[member[1]], int(member[2])
    if normed := _NORMED.fullmatch(name):
        return _LAYER_NORM, normed[1] or "", *([float(normed[2])] if normed[2] else [])
    if name not in CELLS and (found := parts(name)):
        return CELLS[found[0]], *found[1]
    return (CELLS.get(name) or _unknown(name),)


def _unknown(name: str) -> str:
    others = (f"{base}-{activation}" for base in USUAL for activation in ACTIVATIONS)
    near = difflib.get_close_matches(name.lower(), [*CELLS, *NORMED, *others], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(CELLS)}"
    raise InputError(
        f"unknown {as_option('cell')} {name!r}: {hint} (a cell of your own: --cell package.module:factory)"
    )


def _load(reference: str, *which: float | str) -> Cell:
    from gradscope.cells.cell import Cell

    module_name, _, attribute = reference.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), attribute)(*which)
    except (Exception, SystemExit) as error:  # the user's module may fail in any way
        raise InputError(
            f"cell {reference!r}: {type(error).__name__}: {error}; expected package.module:factory "
            "where factory() returns a gradscope.Cell"
        ) from error
    if not isinstance(made, Cell):
        raise InputError(
            f"cell {reference!r}: factory returned {type(made).__name__}, expected gradscope.Cell"
        )
    return made
