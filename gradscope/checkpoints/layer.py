"""A layer read from a file, and the check that its arrays are those of its cell."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.notation import is_any_bias
from gradscope.checkpoints.signals import Mask
from gradscope.custom_types import Array
from gradscope.errors import InputError, counted, listed, shown

if TYPE_CHECKING:
    from gradscope.checkpoints.derivatives import Derivatives

# Sizes that no other axis of a cell will have: they tell which axis is which.
_HIDDEN, _INPUT = 1_000_003, 2_000_003
_NAMES = {_HIDDEN: "hidden", _INPUT: "input_size"}
# Of a layer that starts from what other parts of the model make.
ELSEWHERE = (
    "the state that it starts from comes from elsewhere in the model: the way back through its start is not "
    "in the gain"
)


@dataclass(frozen=True, kw_only=True)
class InModel:
    """What a model does around a recurrent layer: what the layer reads, and from where it starts.

    direction : "backward" where it reads the sequence from its end; depth : how many recurrent layers
        of its stack its input goes through before; dtype : of the numbers in the file.
    below : the layers whose outputs, side by side, are its inputs; () if it reads what the model is given,
        None if the file does not say, or something that gradscope does not compute stands between.
    reads : where it reads no layers, what the value that it reads is called, "" if it is the model's only
        input, or not known; table : the embedding that makes it of token ids, "" if none does, None if the
        file does not say.
    mask : at which steps it leaves its state as it is, None where at none.
    given_state : whether the model computes the initial state, or is given it.
    lengths : how many steps each sequence has, where the model says so; given_lengths : what tells that as it
        runs, "" where nothing does.
    not_applied : what the model does besides and the analysis does not (dropout in training), in sentences;
    assumed : what the file does not say and was taken to be so.
    time_major : whether the model takes sequences as (T, B, d), None where that is not known.
    alone : whether the file does not say what it reads, which is then taken to be the inputs; before : the
        tensors of the file that may make of inputs of its size what it reads.
    twice : parameters that are the sum of two in the file, as torch's biases are.
    unlike : what makes it put out something else than its weights say, where that is known.
    """

    direction: str = "forward"
    depth: int = 0
    dtype: str = "float64"
    below: tuple[str, ...] | None = ()
    reads: str = ""
    table: str | None = None
    mask: Mask | None = None
    given_state: bool = False
    lengths: tuple[int, ...] | None = None
    given_lengths: str = ""
    not_applied: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    time_major: bool | None = None
    alone: bool = False
    before: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    unlike: str = ""


@dataclass(frozen=True)
class Layer(InModel):
    """A trained recurrent layer.

    parameters : float64 arrays, keys and shapes exactly ``cell.parameters(hidden, input_size)``.
    name : where in its file it was, "" if it was all of it; source : the file's path.
    state : (m,), the initial state, unless the model has another (``given_state``).
    derivatives : where its steps come from, if not from equations of ours; own_sizes : hidden and input size
        then, of the cell that has these steps.
    """

    cell: Cell
    parameters: dict[str, Array]
    name: str
    state: Array
    source: str = ""
    derivatives: Derivatives | None = None
    own_sizes: tuple[int, int] | None = None

    @property
    def hidden(self) -> int:
        """Units n of the layer."""
        return self._sizes[0]

    @property
    def input_size(self) -> int:
        """Input features d of the layer."""
        return self._sizes[1]

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.own_sizes or _sizes(self.cell, self.parameters)

    def check_inputs(self, *, given: bool, named: bool = True) -> None:
        """Raise InputError where only the user knows what the layer reads, and has not given it.

        given : whether there are inputs; named : whether they are said to be this layer's own, by its name.
        """
        if self.below is None and not (given and named):
            raise InputError(
                f"layer {shown(self.name)} reads {not_computed(self.reads)}: give that, {self.input_size} "
                f"features, as --inputs of shape (T, d) or (B, T, d){self._by_name(named)}"
            )
        if self.before and given and not named:
            raise InputError(
                f"layer {shown(self.name)} reads the inputs, or {may_stand_before(self.before)}: if the "
                f"inputs are what it reads itself, say so by --layer {shown(self.name)}; else give that, or "
                "record it: from_torch(model, batch) or its like as checkpoint, or record(model, batch, "
                "'run.npz') and --inputs run.npz"
            )

    def _by_name(self, named: bool) -> str:
        return "" if named or not self.name else f", and say that it is by --layer {shown(self.name)}"

    def check_state(self, *, given: bool) -> None:
        """Raise InputError where the layer starts from a state that only the user can know."""
        if self.given_state and not given:
            keys = [".".join(filter(None, (self.name, key))) for key in _state_keys(self.cell)]
            raise InputError(
                "the initial state comes from elsewhere in the model, which gradscope does not compute: give "
                f"{listed(keys)} as --initial-state"
            )


def asked_lengths(what: str) -> str:
    """What to do where something that gradscope does not compute tells the lengths; what : its name."""
    return f"{shown(what)} tells how many steps each sequence has: give these as --lengths"


def may_stand_before(tensors: tuple[str, ...]) -> str:
    """What else a layer may read, of a file that does not say it; tensors : as ``before`` in InModel."""
    return f"what {listed(list(tensors), 3)} makes of the inputs, which the file does not say"


def not_computed(reads: str) -> str:
    """What a layer reads that gradscope does not compute; reads : as in Layer."""
    what = shown(reads) if reads else "what other parts of the model make of their inputs"
    return f"{what}, which gradscope does not compute"


def mismatch(cell: Cell, names: Set[str]) -> str:
    """What is wrong with these keys for the cell, "" if nothing is.

    Biases may be left out together (``bias=False``), one alone may not: a forgotten b_f is not zero.
    """
    every = cell.shapes(_HIDDEN, _INPUT).keys()
    biases = {key for key in every if is_any_bias(key)}
    missing, unknown = every - names, names - every - set(_state_keys(cell))
    if missing == biases:
        missing = set()
    problems = [f"missing {listed(sorted(missing))}"] * bool(missing)
    problems += [f"unknown {listed(sorted(unknown))}"] * bool(unknown)
    if not problems:
        return ""
    optional = ", ".join(_state_keys(cell))
    return f"{'; '.join(problems)}: cell {cell.name} has the keys {', '.join(every)} and may have {optional}"


def assemble(cell: Cell, arrays: Mapping[str, Array], name: str = "") -> Layer:
    """The Layer of arrays that have the cell's keys; raises InputError where one does not fit."""
    if problem := mismatch(cell, arrays.keys()):
        raise InputError(problem)
    hidden, input_size = _sizes(cell, arrays)
    shapes = cell.shapes(hidden, input_size)
    extents = cell.extents(hidden).values()
    states = {key: (part.stop - part.start,) for key, part in zip(_state_keys(cell), extents, strict=True)}
    for key, expected in (shapes | states).items():
        if key in arrays and arrays[key].shape != expected:
            raise InputError(
                f"{key} has shape {arrays[key].shape}, expected {expected} for {hidden} units "
                f"and {counted(input_size, 'input')} of cell {cell.name}"
            )
    filled = {key: arrays.get(key, np.zeros(shape)) for key, shape in (shapes | states).items()}
    return Layer(
        cell, {key: filled[key] for key in shapes}, name, np.concatenate([filled[k] for k in states])
    )


def _state_keys(cell: Cell) -> list[str]:
    """The optional keys of the initial state: ``c0``, ``h0``."""
    return [f"{component}0" for component in cell.components]


def _sizes(cell: Cell, arrays: Mapping[str, Array]) -> tuple[int, int]:
    """Hidden and input size, each from the first axis that has it."""
    found: dict[int, int] = {}
    for key, axes in cell.shapes(_HIDDEN, _INPUT).items():
        shape = arrays[key].shape if key in arrays else axes
        if len(shape) != len(axes) or 0 in shape:
            named = ", ".join(_NAMES.get(axis, "...") for axis in axes)
            raise InputError(
                f"{key} has shape {shape}, expected {len(axes)} axes, none of them empty: [{named}]"
            )
        if key in arrays:
            found = dict(zip(axes, shape, strict=True)) | found
    if _HIDDEN not in found or _INPUT not in found:
        raise InputError(f"cell {cell.name} has no array whose shape tells the hidden and the input size")
    return found[_HIDDEN], found[_INPUT]
