"""Initial states as the user gives them, for every layer of a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, quoted, shown
from gradscope.formats.reading import read_arrays
from gradscope.formats.tensors import as_float64

# Of a layer: its name, and where in its state each component is (Cell.extents).
Layers = Mapping[str, Mapping[str, slice]]


def initial_states(given: Any, layers: Layers, batch: int) -> dict[str, Array]:
    """The states before each layer's first step, {name: (B, m)}, of the layers that ``given`` speaks of.

    given : a file or a mapping of ``h0``, and ``c0`` for an LSTM: (n,) or (B, n) for one layer, (L, n) or
        (L, B, n) for L of them in the order of ``layers``, as PyTorch has them; or of ``NAME.h0`` for the
        layer NAME, which goes before. An array, or a file of a single one, is h0.
    A backward layer's first step is at the end of the sequence. Raises InputError for what does not fit.
    """
    called, arrays = _read(given)
    found: dict[str, dict[str, Array]] = {}
    for key in sorted(arrays, key=lambda key: "." in key):
        name, _, part = key.rpartition(".")
        having = {n: extents for n, extents in layers.items() if part in _keys(extents) and name in ("", n)}
        if not having:
            raise _unknown(called, key, layers)
        alone = len(having) == 1 and arrays[key].ndim < 3
        rows = list(np.atleast_1d(arrays[key][None] if alone else arrays[key]))
        for number, (layer, extents) in enumerate(having.items()):
            place = extents[part[:-1]]
            size = place.stop - place.start
            if len(rows) != len(having) or rows[number].shape not in ((size,), (batch, size)):
                raise _misshapen(called, key, arrays[key], (len(having), batch, size))
            found.setdefault(layer, {})[part] = np.broadcast_to(rows[number], (batch, size))
    return {name: _whole(called, name, parts, layers[name]) for name, parts in found.items()}


def _read(given: Any) -> tuple[str, dict[str, Array]]:
    """What messages call it, and its arrays by their keys."""
    if isinstance(given, str | os.PathLike):
        return f"initial state {shown(os.fspath(given))}", read_arrays(given, "h0")
    arrays = given if isinstance(given, Mapping) else {"h0": given}
    if not arrays:
        raise InputError("initial state is empty, expected h0 and, for an LSTM, c0")
    return "initial state", {str(key): as_float64(a, f"initial state {key}") for key, a in arrays.items()}


def _keys(extents: Mapping[str, slice]) -> list[str]:
    return [f"{component}0" for component in extents]


def _whole(called: str, name: str, parts: Mapping[str, Array], extents: Mapping[str, slice]) -> Array:
    """A layer's state from its parts."""
    if missing := [key for key in _keys(extents) if key not in parts]:
        of = f"layer {shown(name)}" if name else "the cell"
        raise InputError(
            f"{called} has {listed(list(parts))} of {of} but not {listed(missing)}: give all of them"
        )
    return np.concatenate([parts[key] for key in _keys(extents)], axis=1)


def _unknown(called: str, key: str, layers: Layers) -> InputError:
    keys = list(dict.fromkeys(key for extents in layers.values() for key in _keys(extents)))
    named = [f"{name}.{key}" for name, extents in layers.items() if name for key in _keys(extents)]
    expected = f"{listed(keys)}, or {listed(named)}" if named else listed(keys)
    return InputError(f"{called} has {quoted(key)}, expected {expected}")


def _misshapen(called: str, key: str, values: Array, expected: tuple[int, int, int]) -> InputError:
    count, batch, size = expected
    several = f"{count}, " if count > 1 else ""
    one = f"({several}{size})" if several else f"({size},)"
    hint = f" for {count} layers; of layers of different sizes NAME.{key} is one's own" if several else ""
    return InputError(
        f"{called}: {shown(key)} has shape {values.shape}, expected {one} or ({several}{batch}, {size}){hint}"
    )
