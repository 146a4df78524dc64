"""Which layers of a model what is given is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gradscope.checkpoints import Layer, Model, Named
from gradscope.errors import InputError, listed, shown
from gradscope.problem.inputs import Sequences


def check_roots(model: Model, given: Sequences | str) -> None:
    """Raise InputError where what is given is not what all the lowest layers read.

    Inputs are those of the model. What gradscope does not compute of them can be given too: it is the
    layer's own if that is chosen by its name.
    """
    roots = [layer for layer in model.layers if not layer.below]
    unknown = [layer.name for layer in roots if layer.below is None]
    if 0 < len(unknown) < len(roots):
        raise InputError(
            f"layer {listed(unknown)} reads what other parts of the model make of their inputs, which "
            "gradscope does not compute: choose it with --layer and give its own --inputs, or choose others"
        )
    for layer in roots:
        layer.check_inputs(given=isinstance(given, Sequences), named=layer.name in model.named)
    if isinstance(given, Sequences):
        _check_same(roots)
        for layer in roots:
            _check_table(layer, given, named=layer.name in model.named)


def _check_same(roots: Sequence[Layer]) -> None:
    """One sequence cannot be several different ones."""
    readers: dict[str, list[str]] = {}
    for layer in roots:
        # What is not known to be the same may be something else.
        key = layer.name if layer.below is None and not layer.reads else layer.reads
        readers.setdefault(key, []).append(layer.name)
    if len(readers) > 1:
        each = [f"{listed(names)} (of {shown(key)})" for key, names in readers.items()]
        raise InputError(
            f"layers read different things, {listed(each)}, and the inputs are one: choose those of one with "
            "--layer"
        )


def _check_table(layer: Layer, given: Sequences, *, named: bool) -> None:
    """Raise InputError where ids are for another embedding, or numbers may be ids."""
    called = f"layer {shown(layer.name)}"
    if given.table is not None and layer.table is not None and not _is_of(given.table, layer.table):
        own = (
            f"embedding {shown(layer.table)}"
            if layer.table
            else shown(layer.reads) or "the inputs as they are"
        )
        raise InputError(
            f"{called} reads {own}, not embedding {shown(given.table.name)}: give --inputs of that"
        )
    if given.table is None and layer.table and not named and not np.any(given.values % 1):
        raise InputError(
            f"the {given.called} are whole numbers, and {called} reads embedding {shown(layer.table)}: if "
            f"they are token ids, add --embedding {shown(layer.table)}; if they are its own inputs, --layer "
            f"{shown(layer.name)}"
        )


def _is_of(table: Named, layer: str) -> bool:
    """Whether a tensor is that of the embedding of this name, of which files say more or less."""
    parts = re.split("[./]", table.name)
    return table.name == layer or layer.rpartition("/")[2] in parts
