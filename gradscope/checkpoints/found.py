"""A recurrent layer as a file has it: its arrays in our notation, and the cells that it may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np

from gradscope.cells import find
from gradscope.cells.activated import activation_of, base_of
from gradscope.cells.cell import Cell
from gradscope.cells.notation import is_bias, is_input_weight, key
from gradscope.checkpoints.derivatives import Derivatives
from gradscope.checkpoints.layer import (
    ELSEWHERE,
    InModel,
    Layer,
    asked_lengths,
    assemble,
    may_stand_before,
    not_computed,
)
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, quoted
from gradscope.formats.tensors import Tensors, as_float64

ACTIVATIONS = ("tanh", "relu", "sigmoid", "linear")
_EPSILON = (
    "that the norms' epsilon is torch's 1e-5 (another, as in --cell lstm-layernorm=1e-3, says otherwise)"
)
# Of a layer in a module of several.
_PLACE = re.compile(r"(^|[.])l\d+(_reverse)?$")
SIMPLE = {"tanh": "rnn", "relu": "rnn-relu", "sigmoid": "rnn-sigmoid", "linear": "linear"}


class Layout(NamedTuple):
    """One way in which the arrays of a layer may lie: what they are then, and what is said of it."""

    arrays: dict[str, Array]
    said: str


@dataclass(frozen=True)
class Found(InModel):
    """A recurrent layer in a file, as far as the file tells what it is.

    name : where in the file, "" if it is all of it; arrays : float64 under the names of the cells.
    cells : the cells it may be, none where ``problem`` says why gradscope has no such cell.
    forms : by the name of another cell that only ``cell`` chooses, the arrays that it would have.
    free : whether the file does not say the activations, so that it may be any like ``cells`` with others.
    question : what the file leaves open and how to decide it, "" where it says all.
    doubt : what speaks against its being any of these cells, which only ``cell`` overrules.
    kind, activation : what it is, where ``cells`` does not tell.
    adapters : tensors beside it of which the model may make its weights as it runs, which only a batch or
        ``cell`` overrules.
    keys : the tensors of the file that it was made of.
    layouts : where these may lie in several ways, each by its name.
    derivatives : its own framework's, where gradscope has no equations for it.
    """

    name: str
    arrays: dict[str, Array]
    cells: tuple[str, ...] = ()
    question: str = ""
    problem: str = ""
    kind: str = ""
    activation: str = ""
    keys: tuple[str, ...] = ()
    doubt: str = ""
    adapters: tuple[str, ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    free: bool = False
    forms: Mapping[str, dict[str, Array]] = field(default_factory=dict)
    derivatives: Derivatives | None = None

    @property
    def open(self) -> str:
        """All that is to be decided: what it is, and whether the layer is to be given inputs or a state."""
        state = "the initial state comes from elsewhere in the model: add --initial-state"
        inputs = f"reads {not_computed(self.reads)}: give that as --inputs, with --layer {self.name}"
        said = (
            self.doubt or self._adapted,
            self.question,
            inputs * bool(self.reads and self.below is None),
            f"may read {may_stand_before(self.before)}" * bool(self.before),
            state * self.given_state,
            asked_lengths(self.given_lengths) * bool(self.given_lengths),
        )
        return "; ".join(filter(None, said))

    @property
    def _adapted(self) -> str:
        """The doubt whether its weights are those that the model multiplies with."""
        options = " or ".join(f"--cell {cell}" for cell in self.cells)
        return bool(self.adapters) * (
            f"beside {listed(self.keys[:1])} there are {listed(self.adapters)}, as large as its matrices, by "
            "themselves or multiplied: the model may add these to them, as LoRA does, which a batch, given "
            f"beside a model in memory, shows; if it reads its weights as they are, add {options}"
        )

    @property
    def label(self) -> str:
        """The cell, or the cells it may be."""
        return " or ".join(self.cells) or self.kind

    @property
    def activations(self) -> str:
        """The nonlinearity, or those it may be."""
        return self.activation or " or ".join(dict.fromkeys(map(activation_of, self.cells)))

    @property
    def sizes(self) -> tuple[int, int] | None:
        """Hidden and input size, None where no input weights were read."""
        if self.derivatives:
            return self.derivatives.sizes
        shape = next((array.shape for name, array in self.arrays.items() if is_input_weight(name)), ())
        return (shape[0], shape[1]) if len(shape) == 2 else None

    @property
    def width(self) -> int | None:
        """Features that it puts out, None where its weights were not read."""
        return len(self.arrays["M"]) if "M" in self.arrays else self.sizes and self.sizes[0]

    @property
    def module(self) -> str:
        """The module that it is in: of several layers of one the same."""
        return holder_of(self.name)

    def settle(
        self, cell: Cell | None = None, activation: str | None = None, layout: str | None = None
    ) -> Layer:
        """The Layer, what the file leaves open decided by these; or InputError."""
        if self.problem:
            raise InputError(self.problem)
        if layout is not None or (self.layouts and cell is not None):
            return self._laid_out(layout or "keras").settle(cell, activation)
        layer = self._by_derivatives(cell) if self.derivatives else self._by_equations(cell, activation)
        same = {one.name: getattr(self, one.name) for one in fields(InModel)}
        if self.given_state:
            same |= {"not_applied": (*self.not_applied, ELSEWHERE)}
        if layer.cell.name in self.forms:
            same |= {"assumed": (*self.assumed, _EPSILON), "twice": ()}
        return replace(layer, **same)

    def _laid_out(self, layout: str) -> Found:
        """The layer whose arrays lie in this way, which is then no question."""
        if layout not in self.layouts:
            raise InputError(f"does not leave open how its arrays lie: leave out --layout {layout}")
        arrays, said = self.layouts[layout]
        return replace(self, arrays=arrays, layouts={}, question="", assumed=(*self.assumed, said))

    def may_be(self, cell: Cell) -> bool:
        """Whether the layer could be of this cell."""
        like = {base_of(name) for name in self.cells} if self.free else set()
        return cell.name in self.cells or base_of(cell.name) in like or base_of(cell.name) in self.forms

    def _by_equations(self, cell: Cell | None, activation: str | None) -> Layer:
        chosen = self._choose(cell, activation)
        return assemble(chosen, self.forms.get(base_of(chosen.name), self.arrays), self.name)

    def _by_derivatives(self, cell: Cell | None) -> Layer:
        assert self.derivatives is not None
        if cell is not None:
            raise InputError(
                f"is a {self.kind}, of which {self.derivatives.by}'s derivatives are taken: leave --cell out"
            )
        return self.derivatives.layer(self.name)

    def _choose(self, cell: Cell | None, activation: str | None) -> Cell:
        fitting = [c for c in self.cells if activation in (None, activation_of(c))]
        if not fitting:
            raise InputError(
                f"holds a layer with activation {self.activations}, not --activation {activation}"
            )
        if cell is not None:
            if cell.name not in fitting and not ((self.free or self.forms) and self.may_be(cell)):
                raise InputError(f"holds a layer that is {' or '.join(fitting)}, not --cell {cell.name}")
            return cell
        if doubt := self.doubt or self._adapted:
            raise InputError(doubt)
        # An activation decides between cells that differ in it, and says nothing of gates or layout.
        told = activation is not None and len(self.cells) > 1
        if len(fitting) > 1 or (self.question and not told):
            raise InputError(self.question)
        return find(fitting[0])


def holder_of(name: str, modules: Container[str] = ()) -> str:
    """The module that a layer of this name is in: of several layers of one the same.

    modules : known by their names, of which the layer may be one itself.
    """
    if name in modules:
        return name
    return _PLACE.sub("", name).replace("backward_rnn", "forward_rnn")


def names_of(name: str, names: list[str]) -> list[str]:
    """The layer of this name or all of the module of this name; of one alone, the end of its name will do."""
    if name in names:
        return [name]
    # Whole parts go before any end: encoder is the module model.encoder rather than the layer text_encoder.
    parts = re.compile(rf"(|.*?[./]){re.escape(name)}(?=[./]|\Z)", re.S)
    groups: dict[str, list[str]] = {}
    for full in names:
        if name and (match := parts.match(full)):
            groups.setdefault(match[0], []).append(full)
    fitting = [groups[name]] if name in groups else list(groups.values())
    fitting = fitting or [[full] for full in names if full.endswith(name)]
    if len(fitting) != 1:
        several = "is the end of several" if fitting else "is no recurrent layer"
        raise InputError(f"layer {quoted(name)} {several}, expected one of {listed(names)}")
    return fitting[0]


@dataclass(frozen=True)
class Named:
    """A tensor that is of no recurrent layer: its whole name in the file, and its values."""

    name: str
    values: Array


# What frameworks call the matrix of a module that has one: Linear, Dense, Embedding.
_MATRIX = re.compile(r"[./](weight|kernel|embeddings?|vars/0)(:0)?$")


@dataclass(frozen=True)
class Contents:
    """What a file holds: its recurrent layers, and the names of the tensors that are of none.

    arrays : of those others that were asked for, by what they were asked for as.
    """

    layers: tuple[Found, ...]
    others: tuple[str, ...]
    arrays: Mapping[str, Named] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Iterable[Found], tensors: Tensors, also: Iterable[str] = ()) -> Contents:
        """These layers, the tensors that none of them was made of, and of these the values of ``also``."""
        layers = tuple(layers)
        used = {key for layer in layers for key in layer.keys}
        others = tuple(key for key in tensors if key not in used)
        return cls(layers, others, {name: _called(name, others, tensors) for name in also})


def _called(asked: str, names: Sequence[str], tensors: Tensors) -> Named:
    """The tensor, or the matrix of the module, of this name; a unique end or holder of it will do."""
    modules = {name: _MATRIX.sub("", name) for name in names}
    for fits in (str.__eq__, str.endswith, _within):
        found = [n for n in names if fits(n, asked)] or [n for n in names if fits(modules[n], asked)]
        if len(found) == 1:
            return Named(found[0], tensors[found[0]].values())
        if found:
            raise InputError(f"{quoted(asked)} is part of several: {listed(found)}: say more of its name")
    if not names:
        raise InputError(f"holds no tensor {quoted(asked)}, nor any but those of its recurrent layers")
    # What is asked for is a matrix, as a rule: the biases beside them would only fill the list.
    matrices = [module for name, module in modules.items() if module != name]
    raise InputError(f"holds no tensor {quoted(asked)}, expected one of {listed(matrices or list(names))}")


def _within(name: str, asked: str) -> bool:
    """Whether it is a matrix in what is called so: embedding_1/embedding_1_1/embeddings:0 in embedding_1."""
    return _MATRIX.search(name) is not None and f"/{asked}/" in f"/{name}"


def take(tensors: Tensors, keys: Iterable[str]) -> tuple[dict[str, Array], str]:
    """The values of these tensors, and the dtype (or dtypes) that the file keeps them in."""
    loaded = {name: tensors[name].load() for name in keys}
    dtypes = sorted({"bfloat16" if a.dtype == "V2" else str(a.dtype) for a in loaded.values()})
    return {k: as_float64(array, tensors[k].called) for k, array in loaded.items()}, ", ".join(dtypes)


def attempt(make: Callable[[], Found], name: str, keys: Iterable[str]) -> Found:
    """What ``make`` finds; where it raises InputError, a layer of which that is all that is known."""
    try:
        return replace(make(), name=name, keys=tuple(keys))
    except InputError as error:
        return Found(name, {}, problem=str(error), kind="unreadable", keys=tuple(keys))


def gated(
    gates: Iterable[str],
    weights: Mapping[str, Array],
    *,
    reset_after: bool = False,
) -> dict[str, Array]:
    """The arrays of every gate under our names, from matrices that have the gates' rows in order.

    gates : their names in the order of the rows; weights : "W" (G n, d), "R" (G n, n), and where there
        are biases "b" (G n,) and, inside the product with h, "c" (G n,). The two add up, but for the
        candidate of a GRU whose reset gate comes after that product (``reset_after``).
    """
    gates = tuple(gates)
    parts = {role: np.split(array, len(gates)) for role, array in weights.items()}
    arrays: dict[str, Array] = {}
    for k, gate in enumerate(gates):
        for role in ("W", "R"):
            arrays[key(role, gate)] = parts[role][k]
        b, c = (parts[role][k] if role in parts else 0.0 for role in ("b", "c"))
        if not {"b", "c"} & parts.keys():
            continue
        zero = np.zeros(len(arrays[key("R", gate)]))
        if reset_after and gate == "h":
            arrays["b_h"], arrays["c_h"] = zero + b, zero + c
        else:
            with np.errstate(over="ignore"):  # as_float64 says so in a line
                arrays[key("b", gate)] = as_float64(zero + b + c, "the sum of the two biases")
    return arrays


def added_up(arrays: Iterable[str]) -> tuple[str, ...]:
    """The biases that are the sum of two where ``gated`` was given two: not those of a candidate with c_h."""
    names = tuple(arrays)
    return tuple(name for name in names if is_bias(name) and not (name == "b_h" and "c_h" in names))


def projected_name(projection: Array, called: str) -> str:
    """The cell of an LSTM with this projection (P, n)."""
    if projection.ndim != 2 or not projection.size:
        raise InputError(f"{called} has shape {projection.shape}, expected (P, H) of an LSTM's projection")
    return f"lstm-projected-{len(projection)}"


def blocks(name: str, recurrent: Array, counts: Iterable[int]) -> int:
    """How many gates the rows of a recurrent matrix (G H, H) hold; raises InputError if not one of counts."""
    shape = recurrent.shape
    count = shape[0] // shape[1] if len(shape) == 2 and shape[1] else 0
    if count not in counts or shape[0] != count * shape[1]:
        raise InputError(
            f"{name} has shape {shape}, expected (4 H, H) of an LSTM, (3 H, H) of a GRU, (H, H) of an RNN"
        )
    return count
