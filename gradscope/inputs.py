"""What a model is given: sequences from a file or an array, and other arrays that belong to them."""

from __future__ import annotations

import io
import itertools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.checkpoints.safetensors_file import open_safetensors
from gradscope.errors import InputError
from gradscope.files import (
    Array,
    PathLike,
    as_float64,
    listed,
    open_npz,
    opened,
    quoted,
    read_npy,
    reason,
    shown,
    split_key,
)

# Inputs that are made, not given.
KINDS = ("normal", "zeros")
_FORMATS = "a .npy, .npz, .safetensors or .csv file"
_TREES = {".npz": open_npz, ".safetensors": open_safetensors}
# Between the columns of a .csv, the first of these that its first line has; else spaces.
_DELIMITERS = "\t;,"
# So much of it is looked at: it may be as long as the file.
_HEADING = 4096
# initializers.py draws the weights from stream 1 of the seed: inputs must be independent of them.
_STREAM = 2


@dataclass(frozen=True)
class Sequences:
    """Input sequences as they were given.

    values : (B, T, d) float64; called : what messages call them.
    """

    values: Array
    called: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch B, steps T, input size d."""
        batch, steps, size = self.values.shape
        return batch, steps, size

    def first(self, steps: int) -> Array:
        """Their first steps, (B, steps, d)."""
        return self.values[:, :steps]


def given_sequences(inputs: Any, *, time_major: bool = False) -> Sequences | None:
    """The sequences in a file or an array of shape (T, d) or (B, T, d), with ``time_major`` (T, B, d).

    None where they are to be made: "normal" or "zeros". Raises InputError for what cannot be meant.
    """
    if isinstance(inputs, str) and inputs in KINDS:
        if time_major:
            raise InputError(f"time_major is about the axes of given inputs, but inputs are {inputs}")
        return None
    called, values = _given(inputs, "inputs", f"normal, zeros, or {_FORMATS}")
    layout = "(T, B, d)" if time_major else "(B, T, d)"
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise InputError(f"{called} have shape {values.shape}, expected (T, d) or {layout}, each at least 1")
    if values.ndim == 2:
        values = values[None]
    elif time_major:
        values = values.swapaxes(0, 1)
    return Sequences(values, called)


def given_lengths(given: Any) -> tuple[int, ...] | None:
    """How many steps of each sequence there are: (B,) whole numbers in a file or an array; None is None."""
    if given is None:
        return None
    called, values = _given(given, "lengths")
    values = values.ravel() if values.ndim == 2 and 1 in values.shape else values  # a column of a table
    if values.ndim != 1 or not values.size:
        raise InputError(f"{called} have shape {values.shape}, expected (B,), one for each sequence")
    _check_whole(values, called, 1)
    return tuple(map(int, values))


def extents(
    asked: Mapping[str, int], given: Sequences | None, lengths: tuple[int, ...] | None
) -> tuple[tuple[int, int, int], tuple[int, ...] | None]:
    """Batch, steps and input size, and the lengths, cut to the steps that are asked for.

    asked : those of batch, steps and input_size that are; else they are as the inputs or the lengths have
        them, else the default. Raises InputError where they contradict each other.
    """
    default = (1, 200, 32) if lengths is None else (len(lengths), max(lengths), 32)
    there = dict(zip(("batch", "steps", "input_size"), given.shape if given else default, strict=True))
    found = {name: asked.get(name, size) for name, size in there.items()}
    for name, size in found.items():
        if given and (size > there[name] or (size < there[name] and name != "steps")):
            must = f"at most {there[name]}" if name == "steps" else "they must agree"
            raise InputError(f"{name} is {size}, but the {given.called} have {there[name]}: {must}")
    if lengths:
        if len(lengths) != found["batch"]:
            raise InputError(
                f"there are {len(lengths)} lengths for {found['batch']} sequences: they must agree"
            )
        if max(lengths) > there["steps"]:
            raise InputError(f"a length is {max(lengths)}, but the inputs have {there['steps']} steps")
        lengths = tuple(min(length, found["steps"]) for length in lengths)
        found["steps"] = max(lengths)
    return (found["batch"], found["steps"], found["input_size"]), lengths


def reversed_within(values: Array, lengths: Sequence[int] | None) -> Array:
    """Sequences (B, T, ...), each reversed within its own length; what is beyond it stays there.

    Its own inverse. lengths : (B,), None where all have T.
    """
    if lengths is None:
        return values[:, ::-1]
    turned = values.copy()
    for sequence, length in zip(turned, lengths, strict=True):
        sequence[:length] = sequence[:length][::-1]
    return turned


def drawn_sequences(kind: str, shape: tuple[int, int, int], seed: int) -> Array:
    """Sequences of shape (B, T, d): N(0, 1), or zeros."""
    if kind == "zeros":
        return np.zeros(shape)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,))).standard_normal(shape)


def read_array(path: PathLike, expected: str = _FORMATS) -> Array:
    """The array in a file as float64.

    path : a ``.npy``, a ``.npz`` or ``.safetensors`` that holds nothing else or is followed by
        ``:name``, or a ``.csv``, of shape (rows, columns); expected : what the message asks for
        where it is none of these.
    Raises InputError for whatever is not finite numbers.
    """
    file, key = split_key(path)
    suffix = Path(file).suffix.lower()
    if suffix in _TREES:
        with _TREES[suffix](file) as tensors:
            return tensors[_chosen(list(tensors), file, key)].values()
    if suffix == ".npy":
        return read_npy(path)
    if suffix == ".csv":
        return _read_csv(path)
    raise InputError(f"{quoted(os.fspath(path))}: expected {expected}")


def _given(given: Any, name: str, expected: str = _FORMATS) -> tuple[str, Array]:
    """What messages call it, and the array itself, or that in the file."""
    if isinstance(given, str | os.PathLike):
        return f"{name} {shown(os.fspath(given))}", read_array(given, expected)
    return name, as_float64(given, name)


def _check_whole(values: Array, called: str, least: int, most: int | None = None) -> None:
    wrong = (values < least) | (values != np.round(values)) | (values > (2**53 if most is None else most))
    if wrong.any():
        where = tuple(map(int, np.unravel_index(np.argmax(wrong), values.shape)))
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        got = f"{values[where]:.15g} at index {list(where)}"
        raise InputError(f"{called} hold {got}, expected whole numbers {bound}")


def _chosen(names: list[str], file: str, key: str | None) -> str:
    if key is not None and key not in names:
        raise InputError(f"holds no array {quoted(key)}, expected one of {listed(names)}")
    if key is None and len(names) != 1:
        raise InputError(
            f"holds {len(names)} arrays ({listed(names)}): say which, as in {shown(file)}:{listed(names[:1])}"
        )
    return names[0] if key is None else key


def _read_csv(path: PathLike) -> Array:
    """The numbers (rows, columns) of a text file; a first line without any number is a heading."""
    with opened(path, ".csv") as (file, _):
        lines = io.TextIOWrapper(file, "utf-8-sig")
        first = next((line for line in lines if line.partition("#")[0].strip()), "")
        delimiter = next((mark for mark in _DELIMITERS if mark in first), None)
        cells = [cell.strip(' "\n') for cell in first[:_HEADING].split(delimiter)]
        kept = [first] if any(map(_is_number, cells)) else []
        try:
            with warnings.catch_warnings(action="ignore"):  # of no rows, which are an error here
                rows = np.loadtxt(itertools.chain(kept, lines), delimiter=delimiter, ndmin=2, quotechar='"')
        except ValueError as error:
            raise InputError(f"{_complaint(error)}; expected one row of numbers for each step") from error
        if not rows.size:
            raise InputError("holds no numbers, expected one row for each step")
        return as_float64(rows, "the table")


def _complaint(error: ValueError) -> str:
    """What NumPy says of a table, which counts rows from 0 where it means a cell."""
    text = reason(error).partition(";")[0].rstrip(".")
    return re.sub(r"row (\d+), column", lambda row: f"row {int(row[1]) + 1}, column", text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
