"""What a model is given: sequences from a file or an array, and other arrays that belong to them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, MisfitError, as_option, counted, shown
from gradscope.formats.reading import ARRAY_KINDS, read_array
from gradscope.formats.tensors import as_float64
from gradscope.settings import BATCH, INPUT_SIZE, STEPS

if TYPE_CHECKING:
    from gradscope.checkpoints import Named

# Inputs that are made, not given.
KINDS = ("normal", "zeros")
# initializers.py draws the weights from stream 1 of the seed: inputs must be independent of them.
_STREAM = 2


@dataclass(frozen=True)
class Sequences:
    """Input sequences as they were given.

    values : (B, T, d) float64, or (B, T) token ids where there is a ``table``, the (V, d) matrix of an
        embedding; called : what messages call them; label : the file they are from.
    batched, time_major : whether they were given as more than one, and that with the time first.
    """

    values: Array
    called: str
    table: Named | None = None
    label: str = "array"
    batched: bool = False
    time_major: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch B, steps T, input size d."""
        batch, steps, *size = (*self.values.shape, *(self.table.values.shape[1:] if self.table else ()))
        return batch, steps, size[0]

    @property
    def hint(self) -> str:
        """What to do where they do not fit, if they may be token ids."""
        whole = self.table is None and self.values.size > 0 and not np.any(self.values % 1)
        return "; if they are token ids, say which --embedding of the checkpoint" if whole else ""

    def other_order(self, lengths: Sequence[int]) -> str:
        """What to do where lengths do not fit, if they would with axes 0 and 1 of a batch swapped."""
        batch, steps, _ = self.shape
        if not self.batched or len(lengths) != steps or max(lengths) > batch:
            return ""
        if self.time_major:
            return "; if axis 0 of the inputs is the batch, swap axes 0 and 1: they were read as (T, B, d)"
        return "; if axis 0 of the inputs is time, add --time-major"

    def taking(self, batch: int, lengths: tuple[int, ...] | None) -> tuple[Sequences, tuple[int, ...] | None]:
        """The first sequences alone, and their lengths."""
        if batch >= len(self.values):
            return self, lengths
        if lengths is not None and len(lengths) == len(self.values):
            lengths = lengths[:batch]
        return replace(self, values=self.values[:batch]), lengths

    def first(self, steps: int, lengths: Sequence[int] | None) -> Array:
        """Their first steps, (B, steps, d); ids beyond a sequence's length may be any."""
        values = self.values[:, :steps]
        if self.table is None:
            return values
        if lengths:
            values = np.where(np.arange(steps) < np.array(lengths)[:, None], values, 0)
        _check_whole(values, self.called, 0, len(self.table.values) - 1)
        return self.table.values[values.astype(np.int64)]


def given_sequences(
    inputs: Any, *, time_major: bool = False, embedding: Named | None = None
) -> Sequences | None:
    """The sequences in a file or an array of shape (T, d) or (B, T, d), with ``time_major`` (T, B, d).

    With the matrix (V, d) of an ``embedding`` they are token ids, the shapes the same without d.
    None where they are to be made: "normal" or "zeros". Raises InputError for what cannot be meant.
    """
    if embedding and embedding.values.ndim != 2:
        shape = f"{shown(embedding.name)} has shape {embedding.values.shape}"
        raise InputError(f"embedding {shape}, expected (V, d), a row for each token")
    if is_made(inputs):
        if time_major or embedding:
            name = "time_major" if time_major else "embedding"
            raise InputError(
                f"{as_option(name)} is about given inputs, but inputs are {inputs}: give --inputs FILE"
            )
        return None
    called, values = _given(inputs, "inputs", f"normal, zeros, or {ARRAY_KINDS}")
    if embedding and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]  # a column of a table
    axes = ("T",) if embedding else ("T", "d")
    batch = ("T", "B", *axes[1:]) if time_major else ("B", *axes)
    if values.ndim not in (len(axes), len(batch)) or 0 in values.shape:
        expected = " or ".join(str(shape).replace("'", "") for shape in (axes, batch))
        hint = "" if embedding else Sequences(values, called).hint
        raise InputError(f"{called} have shape {values.shape}, expected {expected}, each at least 1{hint}")
    batched = values.ndim > len(axes)
    if not batched:
        values = values[None]
    elif time_major:
        values = values.swapaxes(0, 1)
    return Sequences(values, called, embedding, label(inputs), batched, time_major)


def is_made(inputs: Any) -> bool:
    """Whether inputs are to be made, "normal" or "zeros"."""
    return isinstance(inputs, str) and inputs in KINDS


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
    asked: Mapping[str, int], given: Sequences | None, lengths: tuple[int, ...] | None, of_layer: bool = False
) -> tuple[tuple[int, int, int], tuple[int, ...] | None]:
    """Batch, steps and input size, and the lengths, cut to the steps that are asked for.

    asked : those of batch, steps and input_size that are; else they are as the inputs or the lengths have
        them, else the default. Raises InputError where they contradict each other.
    of_layer : whether the input size is a layer's own, which no option sets.
    """
    default = (BATCH, STEPS, INPUT_SIZE) if lengths is None else (len(lengths), max(lengths), INPUT_SIZE)
    there = dict(zip(("batch", "steps", "input_size"), given.shape if given else default, strict=True))
    found = {name: asked.get(name, size) for name, size in there.items()}
    for name, size in found.items():
        if given and (size > there[name] or (size < there[name] and name != "steps")):
            must = f"at most {there[name]}" if name == "steps" else "they must agree"
            must += given.hint if name == "input_size" else ""
            kind = MisfitError if name == "input_size" else InputError
            said = "its input size" if of_layer and name == "input_size" else as_option(name)
            raise kind(f"{said} is {size}, but the {given.called} have {there[name]}: {must}")
    if lengths:
        other = given.other_order(lengths) if given else ""
        if len(lengths) != found["batch"]:
            raise InputError(
                f"got {counted(len(lengths), 'length')} for {counted(found['batch'], 'sequence')}: they must "
                f"agree{other}"
            )
        if max(lengths) > there["steps"]:
            raise InputError(
                f"a length is {max(lengths)}, but the inputs have {counted(there['steps'], 'step')}{other}"
            )
        lengths = tuple(min(length, found["steps"]) for length in lengths)
        found["steps"] = max(lengths)
    return (found["batch"], found["steps"], found["input_size"]), lengths


def drawn_sequences(kind: str, shape: tuple[int, int, int], seed: int) -> Array:
    """Sequences of shape (B, T, d): N(0, 1), or zeros."""
    if kind == "zeros":
        return np.zeros(shape)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,))).standard_normal(shape)


def _given(given: Any, name: str, expected: str = ARRAY_KINDS) -> tuple[str, Array]:
    """What messages call it, and the array itself, or that in the file."""
    if isinstance(given, str | os.PathLike):
        return f"{name} {shown(os.fspath(given))}", read_array(given, expected)
    return name, as_float64(given, name)


def label(given: Any) -> str:
    """What JSON calls what was given: the file, or "array"."""
    return os.fspath(given) if isinstance(given, str | os.PathLike) else "array"


def _check_whole(values: Array, called: str, least: int, most: int | None = None) -> None:
    wrong = (values < least) | (values != np.round(values)) | (values > (2**53 if most is None else most))
    if wrong.any():
        where = tuple(map(int, np.unravel_index(np.argmax(wrong), values.shape)))
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        got = f"{values[where]:.15g} at index {list(where)}"
        raise InputError(f"{called} hold {got}, expected whole numbers {bound}")
