"""The file of a recording: what a model in memory is run for once, for the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.checkpoints.live_models import read_live
from gradscope.checkpoints.recording import Recorded, Recording
from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, about, listed, quoted, reason, shown
from gradscope.formats.numpy_files import open_npz
from gradscope.formats.reading import read_arrays, suffix

# The array that tells such a file from one of inputs, and the version of what it holds.
_MARK, _VERSION = "gradscope_recording", 1.0
_STATES = ("h0", "c0")
_SAID = ("fed_back", "backward")
_FIELDS = ("inputs", "outputs", "last", "lengths", "mask", "rounding", *_SAID, *_STATES)


def record(model: Any, batch: Any, path: PathLike) -> None:
    """Write what the recurrent layers of a model read and put out on a batch, for ``--inputs`` of the shell.

    ``gradscope analyze model.pt --inputs run.npz`` is then ``from_torch(model, batch)`` of the same weights:
    every layer on its own inputs, and what gradscope computes compared with what the layer put out.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model, flax.nnx.Module, a bound flax.linen.Module, equinox.Module
        Run once, not in training, and as before afterwards.
    batch : array, tuple or dict
        What the model is called with, as ``from_torch`` and its like take it.
    path : str or Path
        A ``.npz`` file, which is replaced: of each layer NAME ``NAME.inputs`` (B, T, d), ``NAME.outputs``
        (B, T, n), ``NAME.h0`` and ``NAME.c0`` (B, n), ``NAME.lengths`` (B,), and what the comparison needs.

    Raises
    ------
    InputError
        Where these raise it, no layer can be recorded, or the file cannot be written.
    """
    if suffix(path) != ".npz":
        raise InputError(f"record was given the path {quoted(os.fspath(path))}, expected a .npz file")
    live = read_live("record", model, batch)
    recorded = live.recorded
    if recorded is None:
        raise InputError("record was given no batch, expected what the model is called with")
    own = next((layer for layer in live.layers if layer.derivatives), None)
    if not recorded.layers and own:
        raise InputError(
            f"{live.source}: {shown(own.name)} is a {own.kind}, which only its framework differentiates, and "
            "a file does not hold it: give analyze, in Python, what from_torch or its like return"
        )
    if not recorded.layers:
        name, why = next(iter(recorded.problems.items()))
        raise InputError(f"{live.source}: no layer can be recorded: {shown(name)} {why}")
    try:
        with Path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, **_arrays(recorded))
    except OSError as error:
        raise InputError(f"{shown(os.fspath(path))} cannot be written: {reason(error)}") from error


def _arrays(recorded: Recorded) -> dict[str, Array]:
    arrays = {_MARK: np.array(_VERSION)}
    for name, one in recorded.layers.items():
        fields = vars(one) | dict(one.state)
        for key in _FIELDS:
            if fields.get(key) is not None:
                arrays[_key(name, key)] = np.array(fields[key], np.float64)
    return arrays


def _key(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def read_recorded(path: Any) -> Recorded | None:
    """What is in a file that ``record`` wrote, None where it is another, or none; InputError if damaged."""
    if not isinstance(path, str | os.PathLike) or suffix(path) != ".npz":
        return None
    try:
        with open_npz(path) as tensors:
            if _MARK not in tensors:
                return None
    except InputError:  # is said where the inputs are read
        return None
    arrays = read_arrays(path, "")
    with about(path):
        if arrays.pop(_MARK).ravel().tolist() != [_VERSION]:
            raise InputError("is a recording of another version of gradscope: record it again")
        by_layer: dict[str, dict[str, Array]] = {}
        for key, array in arrays.items():
            name, _, field = key.rpartition(".")
            if field not in _FIELDS:
                raise InputError(f"is a recording with an array {quoted(key)}, expected {listed(_FIELDS)}")
            by_layer.setdefault(name, {})[field] = array
        layers = {name: _recording(name, fields) for name, fields in by_layer.items()}
    return Recorded(layers, label=os.fspath(path))


def _recording(name: str, fields: Mapping[str, Array]) -> Recording:
    """Of one layer; what is not there is as where there was none."""
    lengths, rounding = fields.get("lengths"), fields.get("rounding")
    axes = {"inputs": 3, "outputs": 3, "last": 2, "lengths": 1, "mask": 2, "rounding": 0} | dict.fromkeys(
        _SAID, 0
    )
    for key, array in fields.items():
        if array.ndim != axes.get(key, 2) or 0 in array.shape:
            raise InputError(f"{_key(name, key)} has shape {array.shape}, expected {axes.get(key, 2)} axes")
    if rounding is None or not 0 < float(rounding) < 1 or not ({"outputs", "last"} & fields.keys()):
        raise InputError(f"layer {shown(name)} lacks its outputs or their rounding: record it again")
    if lengths is not None and ((lengths < 1) | (lengths != np.round(lengths)) | (lengths > 2**53)).any():
        raise InputError(f"{_key(name, 'lengths')} are no whole numbers, at least 1")
    mask = fields.get("mask")
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"{_key(name, 'mask')} holds numbers other than 0 and 1")
    said = {key: bool(key in fields and fields[key].any()) for key in _SAID}
    return Recording(
        fields.get("inputs"),
        fields.get("outputs"),
        {key: fields[key] for key in _STATES if key in fields},
        fields.get("last"),
        None if lengths is None else tuple(map(int, lengths)),
        float(rounding),
        mask=None if mask is None else mask == 1,
        fed_back=said["fed_back"],
        backward=said["backward"],
    )
