"""What a cell is: a pure step that takes one copy of the state per path."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.cells.mean import Sum
from gradscope.cells.units import Parameters, Shapes, Units
from gradscope.errors import InputError


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    name : what tables and JSON call it.
    parameters : ``(hidden, input_size) -> {key: shape}``. Keys follow Greff et al. (arXiv
        1503.04069): ``W*`` input weights, ``R*`` recurrent matrices, ``b*`` biases, ``p*`` peepholes.
    step : ``(parameters, x, state) -> state``, pure JAX; ``x`` is (input_size,), a state is
        (m,), its components one after the other. When ``paths`` is not empty, ``state`` is instead a mapping
        ``{path: copy of the state}``, and the Jacobian with respect to a copy is that path's.
    paths : the names of the ways the state at t-1 reaches the state at t.
    components : names of the parts of the state, in the order of the vector; the output is the one called
        "h", else the last.
    sizes : optional ``(hidden) -> size of each component``, where they are not all of hidden size.
    reads : optional ``(path) -> component`` that the path reads and that its own chain stays in; None, also
        as its answer, is the whole state.
    gates : optional ``(parameters, x, state) -> {gate: (hidden,) activations}``, for statistics.
    initialize : optional ``(rng, hidden, input_size) -> {key: array}`` used in place of ``--init``.
    units : the fast per-unit form, for cells that have one.
    members : the layers of a cell that ``stacked`` made of them.
    factors : the paths whose Jacobians ``with_factors`` multiplies by some of its parameters.
    adds : what the first component adds up, where it is known.
    given : whether its derivatives are part of what it reads (``given_slopes``): its states may be infinite.

    Raises InputError where names are not distinct, printable strings, or a path is called "full".
    """

    name: str
    parameters: Callable[[int, int], Shapes]
    step: Callable[[Parameters, Any, Any], Any]
    paths: tuple[str, ...] = ()
    components: tuple[str, ...] = ("h",)
    gates: Callable[[Parameters, Any, Any], dict[str, Any]] | None = None
    initialize: Callable[[np.random.Generator, int, int], dict[str, Any]] | None = None
    units: Units | None = None
    sizes: Callable[[int], tuple[int, ...]] | None = None
    members: tuple[Member, ...] = ()
    reads: Callable[[str], str | None] | None = None
    factors: tuple[str, ...] = ()
    given: bool = False
    adds: Sum | None = None

    def __post_init__(self) -> None:
        if not _printable(self.name):
            raise InputError(f"cell name is {self.name!r:.80}, expected one line of printable text")
        for field, names in {"paths": self.paths, "components": self.components}.items():
            named = isinstance(names, tuple) and all(map(_printable, names))
            if not named or len(set(names)) < len(names):
                raise InputError(
                    f"cell {self.name}: {field} is {names!r:.80}, expected a tuple of distinct names"
                )
        if not self.components:
            raise InputError(f"cell {self.name}: components is empty, expected at least one name")
        if "full" in self.paths:
            raise InputError(f"cell {self.name}: a path is called 'full', as the whole chain is: rename it")

    def shapes(self, hidden: int, input_size: int) -> Shapes:
        """What ``parameters`` returns, if that is shapes by key; raises InputError if not."""
        expected = "expected parameters(hidden, input_size) -> {key: tuple of positive integers}"
        try:
            shapes = self.parameters(hidden, input_size)
        except (Exception, SystemExit) as error:  # the user's function may fail in any way
            raise InputError(
                f"parameters of cell {self.name}: {type(error).__name__}: {error}; {expected}"
            ) from error
        if not isinstance(shapes, Mapping):
            raise InputError(f"parameters of cell {self.name}: returned {shapes!r:.80}; {expected}")
        for name, shape in shapes.items():
            if not (_printable(name) and _is_shape(shape)):
                raise InputError(f"parameters of cell {self.name}: {name!r:.80} is {shape!r:.80}; {expected}")
        return dict(shapes)

    def extents(self, hidden: int) -> dict[str, slice]:
        """Where in the state each component is."""
        sizes = self.sizes(hidden) if self.sizes else (hidden,) * len(self.components)
        ends = list(itertools.accumulate(sizes))
        return {
            name: slice(end - size, end) for name, size, end in zip(self.components, sizes, ends, strict=True)
        }

    def size(self, hidden: int) -> int:
        """States m."""
        return int(self.extents(hidden)[self.components[-1]].stop)

    def output(self, hidden: int) -> slice:
        """Where in the state the output is, which layers above and a readout see."""
        found = self.extents(hidden)["h" if "h" in self.components else self.components[-1]]
        return self.members[-1].output_in(found.start) if self.members else found

    def advance(self, parameters: Parameters, x: Any, state: Any) -> Any:
        """One step with the same state on every path: the ordinary forward pass."""
        return self.step(parameters, x, self.copies(state))

    def copies(self, state: Any) -> Any:
        """The state as ``step`` wants it: itself, or one copy per named path."""
        return dict.fromkeys(self.paths, state) if self.paths else state

    def source(self, path: str) -> int | None:
        """Index of the component a path reads (and its chain stays in); None is the whole state."""
        component = self.reads(path) if self.reads else None
        return None if component is None else self.components.index(component)


@dataclass(frozen=True)
class Member:
    """A layer of a stack: which cell, how large, and what it reads.

    number : of the layer in its file, which names it. reads : what its input is, side by side: the index
    of a member before it, whose output h of the same step it reads, or (start, stop), columns of the
    stack's own input.
    """

    cell: Cell
    hidden: int
    input_size: int
    number: int
    reads: tuple[int | tuple[int, int], ...]

    @property
    def name(self) -> str:
        """Of the component, of the path within it, and before the names of its parameters and gates."""
        return f"layer{self.number}"

    @property
    def size(self) -> int:
        """States m."""
        return self.cell.size(self.hidden)

    def output_in(self, start: int) -> slice:
        """Where its output h is in a state of which its own begins at ``start``."""
        own = self.cell.output(self.hidden)
        return slice(start + own.start, start + own.stop)

    def own(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the stack's parameters or gates that are this layer's, by their names in its cell."""
        prefix = f"{self.name}."
        return {key.removeprefix(prefix): v for key, v in named.items() if key.startswith(prefix)}

    def input(self, x: Any, outputs: Mapping[int, Any]) -> Any:
        """Its input (..., d) from the stack's (..., d) and the outputs {member: (..., n)} of those before.

        Of NumPy's arrays it is one: nothing is compiled for it.
        """
        parts = [outputs[r] if isinstance(r, int) else x[..., slice(*r)] for r in self.reads]
        if all(isinstance(part, np.ndarray) for part in parts):
            return np.concatenate(parts, axis=-1)
        import jax

        return jax.numpy.concatenate(parts, axis=-1)


def _printable(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and not name.isspace() and name != ""


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and all(isinstance(size, int | np.integer) and size > 0 for size in shape)


def unit_cell(
    name: str,
    units: Units,
    parameters: Callable[[int, int], Shapes],
    components: tuple[str, ...],
    adds: Sum | None = None,
) -> Cell:
    """The cell that ``units`` describes: its step reads one copy of the state per path."""

    def advance(params: Parameters, x: Any, copies: Mapping[str, Any]) -> Any:
        import jax

        def read(path: str) -> Any:
            parts = jax.numpy.split(copies[path], len(components))
            return parts[components.index(units.reads(path))]

        return units.advance(params, units.drive(params, x), read)

    def step(params: Parameters, x: Any, copies: Mapping[str, Any]) -> Any:
        import jax

        return jax.numpy.concatenate(advance(params, x, copies)[0])

    def gates(params: Parameters, x: Any, state: Any) -> dict[str, Any]:
        return dict(advance(params, x, dict.fromkeys(units.paths, state))[1])

    return Cell(
        name=name,
        parameters=parameters,
        step=step,
        paths=units.paths,
        components=components,
        gates=gates,
        units=units,
        reads=units.reads,
        adds=adds,
    )
