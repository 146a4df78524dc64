"""The file of a recording: what a model in memory is run for once, for the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.checkpoints.found import Found
from gradscope.checkpoints.live import Live
from gradscope.checkpoints.recorded_steps import AXES, arrays_of, found_in
from gradscope.checkpoints.recording import Recorded, Recording
from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, about, listed, quoted, reason, shown
from gradscope.files import writing
from gradscope.formats.numpy_files import open_npz
from gradscope.formats.reading import read_arrays, suffix

# The array that tells such a file from one of inputs, and the version of what it holds.
_MARK, _VERSION = "gradscope_recording", 1.0
_STATES = ("h0", "c0")
_SAID = ("fed_back", "backward")
_FIELDS = ("inputs", "outputs", "last", "lengths", "mask", "rounding", *_SAID, *_STATES)
# Bytes from which on it is said that a file is written.
_LONG = 64 * 2**20
_WEIGHTS = (
    "is recorded as what it read and put out, its weights are in its checkpoint: give that as well, as in "
    "gradscope analyze CHECKPOINT --inputs FILE"
)


def write_recording(path: PathLike, layers: Sequence[tuple[str, Recording | Found]], most: int) -> None:
    """Write layers of a model by their names: what each read, or its steps where these are differentiated.

    most : bytes that the file may take. Raises InputError where it would take more, and writes nothing then.
    """
    arrays = {_MARK: np.array(_VERSION)}
    for name, one in layers:
        fields = arrays_of(one) if isinstance(one, Found) else _fields(one)
        arrays |= {_key(name, key): array for key, array in fields.items()}
    size = sum(array.nbytes for array in arrays.values())
    if size > most:
        raise InputError(
            f"{shown(os.fspath(path))} would take {size >> 20} MiB, and at most {most >> 20} are written: "
            f"give fewer or shorter sequences, or say max_size={size}"
        )
    if size > _LONG:
        sys.stderr.write(f"gradscope: writing {shown(os.fspath(path))}, {size >> 20} MiB\n")
    try:
        with writing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise InputError(f"{shown(os.fspath(path))} cannot be written: {reason(error)}") from error


def _fields(one: Recording) -> dict[str, Array]:
    fields = vars(one) | dict(one.state)
    return {key: np.array(fields[key], np.float64) for key in _FIELDS if fields.get(key) is not None}


def _key(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def is_recording(tensors: Container[str]) -> bool:
    """Whether these are the names of the arrays of such a file."""
    return _MARK in tensors


def recorded_model(path: Any) -> Live | None:
    """Such a file as a model: layers whose steps it has are whole, the weights of others are elsewhere."""
    recorded = read_recorded(path)
    return None if recorded is None else Live(recorded.label, recorded.found, {}, recorded)


def read_recorded(path: Any) -> Recorded | None:
    """What is in a file that ``record`` wrote, None where it is another, or none; InputError if damaged."""
    if not isinstance(path, str | os.PathLike) or suffix(path) != ".npz":
        return None
    try:
        with open_npz(path) as tensors:
            if not is_recording(tensors):
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
            if field not in (*_FIELDS, *AXES):
                raise InputError(f"is a recording with an array {quoted(key)}, expected {listed(_FIELDS)}")
            by_layer.setdefault(name, {})[field] = array
        layers = [_layer(name, fields) for name, fields in by_layer.items()]
    recorded = {one.name: each for one, each in layers if each}
    return Recorded(recorded, label=os.fspath(path), found=tuple(one for one, _ in layers))


def _layer(name: str, fields: Mapping[str, Array]) -> tuple[Found, Recording | None]:
    """A layer, and what it read where that is all that there is of it."""
    _check_fields(name, fields)
    if "told" not in fields:
        return Found(name, {}, kind="recorded", problem=_WEIGHTS), _recording(name, fields)
    try:
        return found_in(name, fields), None
    except InputError as error:
        raise InputError(f"layer {shown(name)} {error}") from error


def _check_fields(name: str, fields: Mapping[str, Array]) -> None:
    """Raise InputError for arrays that are of no layer."""
    axes = {"inputs": 3, "outputs": 3, "last": 2, "lengths": 1, "mask": 2, "rounding": 0, **AXES}
    axes |= dict.fromkeys(_SAID, 0)
    for key, array in fields.items():
        if array.ndim != axes.get(key, 2) or 0 in array.shape:
            raise InputError(f"{_key(name, key)} has shape {array.shape}, expected {axes.get(key, 2)} axes")
    lengths, mask, rounding = (fields.get(key) for key in ("lengths", "mask", "rounding"))
    if rounding is not None and not 0 < float(rounding) < 1:
        raise InputError(f"{_key(name, 'rounding')} is {float(rounding):g}, expected more than 0 and below 1")
    if lengths is not None and ((lengths < 1) | (lengths != np.round(lengths)) | (lengths > 2**53)).any():
        raise InputError(f"{_key(name, 'lengths')} are no whole numbers, at least 1")
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"{_key(name, 'mask')} holds numbers other than 0 and 1")


def _recording(name: str, fields: Mapping[str, Array]) -> Recording:
    """Of one layer; what is not there is as where there was none."""
    lengths, mask = fields.get("lengths"), fields.get("mask")
    if "rounding" not in fields or not ({"outputs", "last"} & fields.keys()):
        raise InputError(f"layer {shown(name)} lacks its outputs or their rounding: record it again")
    said = {key: bool(key in fields and fields[key].any()) for key in _SAID}
    return Recording(
        fields.get("inputs"),
        fields.get("outputs"),
        {key: fields[key] for key in _STATES if key in fields},
        fields.get("last"),
        None if lengths is None else tuple(map(int, lengths)),
        float(fields["rounding"]),
        mask=None if mask is None else mask == 1,
        fed_back=said["fed_back"],
        backward=said["backward"],
    )
