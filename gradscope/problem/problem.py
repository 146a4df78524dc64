"""What is to be analysed: cell, parameters, inputs, initial state. All checks of what the user gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from gradscope.cells import find
from gradscope.cells.cell import Cell
from gradscope.cells.factors import factor_parameters, with_factors
from gradscope.cells.initializers import initialize
from gradscope.checkpoints import Layer
from gradscope.checkpoints.derivatives import Derivatives
from gradscope.custom_types import Array
from gradscope.errors import InputError, MisfitError, as_option, flag, quoted, shown
from gradscope.linearize.budget import check_memory
from gradscope.linearize.system import System, reversed_within
from gradscope.option import option_of
from gradscope.problem.checks import check_choices, real, whole_number
from gradscope.problem.clip import Clip
from gradscope.problem.initial_state import initial_states
from gradscope.problem.inputs import (
    Sequences,
    drawn_sequences,
    extents,
    given_lengths,
    given_sequences,
    label,
)
from gradscope.problem.origin import Origin
from gradscope.problem.scaling import check_names, factors_of, scale_of
from gradscope.settings import CELL, DEFAULT_TOP, DTYPE, HIDDEN, INIT, MOST_FOR_ALL, Only, Settings


@dataclass(frozen=True)
class Problem:
    """What is asked of a driven cell, valid as it stands.

    system : what runs; cut : paths left out of the Jacobians; view : "state", or "cell" for the chain of an
        LSTM's c alone.
    top : how many singular values to compute, without Jacobians; None is all of them.
    accuracy : "full", or "fast" for singular values to about 1e-6.
    only : what is measured, see ``Settings.only``.
    sensitivity : whether the derivatives of log10 sigma_1 by the parameters are asked for.
    adjoint : (B, S, n) float64, the derivatives of a loss by the outputs h of the last S steps (S = 1: a loss
        at the last step, S = T: at every step); None without a loss.
    clip, tbptt : how that loss's gradient is clipped, and after how many steps truncated, None where not.
    twice : parameters that are the sum of two in their framework (torch's two biases).
    origin : where all of it came from.
    """

    system: System
    cut: tuple[str, ...] = ()
    view: str = "state"
    top: int | None = None
    accuracy: str = "full"
    only: Only = "all"
    sensitivity: bool = False
    adjoint: Array | None = None
    clip: Clip | None = None
    tbptt: int | None = None
    twice: tuple[str, ...] = ()
    origin: Origin = field(default_factory=Origin)

    @property
    def kept(self) -> tuple[str, ...]:
        """The paths that are not cut."""
        return tuple(path for path in self.system.cell.paths if path not in self.cut)

    @property
    def values(self) -> int | None:
        """How many singular values are wanted of each chain, None for all."""
        return 1 if self.top is None and self.only in ("verdict", "gain") else self.top


def make_problem(settings: Settings, layer: Layer | None = None) -> Problem:
    """The problem that the user means; raises InputError with one line for what cannot be meant.

    The inputs may be Sequences too, as read before. A layer of a checkpoint brings its own sizes and
    weights, to which gain and biases still apply.
    """
    asked = {name: getattr(settings, name) for name in ("hidden", "input_size", "steps", "batch")}
    sizes = {name: whole_number(name, value, 1) for name, value in asked.items() if value is not None}
    seed = whole_number("seed", settings.seed, 0)
    gain = 1.0 if settings.gain is None else real("gain", settings.gain, 0.0)
    biases = {key: real(_bias(key), value) for key, value in (settings.biases or {}).items()}
    check_choices(settings)
    view, dtype, accuracy = settings.view, settings.dtype or DTYPE, settings.accuracy

    inputs, initial_state = settings.inputs, settings.initial_state
    read = isinstance(inputs, Sequences)
    given = inputs if read else given_sequences(inputs, time_major=settings.time_major)
    lengths = given_lengths(settings.lengths)
    if layer:
        _check_own({"init": settings.init, **sizes})
        _check_applies(settings, layer)
    cell = layer.cell if layer else _fresh(settings.cell, settings.init)
    init = None if layer or cell.initialize else settings.init or INIT
    if layer:
        sizes |= {"hidden": layer.hidden, "input_size": layer.input_size}
        layer.check_inputs(given=given is not None)
        layer.check_state(given=initial_state is not None)
    n = sizes.get("hidden", HIDDEN)
    (b, t, d), lengths = extents(sizes, given, lengths, of_layer=layer is not None)
    cut = known_paths(cell, as_names(settings.cut), view, min(lengths or (t,)))
    top = chosen_top(settings.top, n if view == "cell" else cell.size(n))
    check_memory(cell, n, (b, t, d), top is not None and view != "cell")

    start = replace(cell, initialize=lambda *_: layer.parameters) if layer else cell
    with np.errstate(over="ignore"):  # a product beyond float64 is found by _check_range
        parameters = initialize(start, n, d, init=init or INIT, gain=gain, biases=biases, seed=seed, steps=t)
    sequences = given.first(t, lengths) if given else drawn_sequences(inputs, (b, t, d), seed)
    sequences = _scaled_inputs(sequences, settings.input_scale)
    if layer and layer.direction == "backward":
        sequences = reversed_within(sequences, lengths)
    name, state = (layer.name, layer.state) if layer else ("", np.zeros(cell.size(n)))
    state = np.tile(state, (b, 1))
    if initial_state is not None:
        state = initial_states(initial_state, {name: cell.extents(n)}, b)[name]
    _check_range({**parameters, "inputs": sequences, "initial state": state}, dtype)
    origin = Origin(
        source=layer.source if layer else "initialised",
        layer=layer.name if layer else None,
        init=init,
        gain=gain,
        biases=biases,
        seed=seed,
        inputs=given.label if given else inputs,
        input_scale=settings.input_scale,
        embedding=given.table.name if given and given.table else None,
        initial_state=None if initial_state is None else label(initial_state),
        not_applied=layer.not_applied if layer else None,
        assumed=layer.assumed if layer else None,
    )
    direction = layer.direction if layer else "forward"
    system = System(*_scaled(cell, n, parameters, settings), sequences, state, lengths, direction, dtype)
    _check_sensitivity(settings, cell, layer, top)
    problem = Problem(system, cut, view, top, accuracy, settings.only, settings.sensitivity, origin=origin)
    if layer:
        problem = replace(problem, twice=layer.twice)
    return _differentiated(problem, layer.derivatives) if layer and layer.derivatives else problem


def _scaled_inputs(sequences: Array, scale: float | None) -> Array:
    if scale is None:
        return sequences
    with np.errstate(over="ignore"):  # found by _check_range
        return np.asarray(real("input_scale", scale) * sequences)


def _scaled(
    cell: Cell, hidden: int, parameters: dict[str, Array], settings: Settings
) -> tuple[Cell, int, dict[str, Array]]:
    """With the factors on the cell's paths that are asked for."""
    paths, scale = paths_of(cell, settings.view), scale_of(settings.scale)
    check_names(scale, paths, f"cell {cell.name} in view {settings.view!r}")
    factors = factors_of(scale, paths)
    return with_factors(cell, tuple(factors)), hidden, parameters | factor_parameters(factors)


def _differentiated(problem: Problem, derivatives: Derivatives) -> Problem:
    """The problem along the states at which something else computed the Jacobians, which are the inputs."""
    system, steps = problem.system, derivatives.steps
    if derivatives.backward and (system.steps, system.lengths) != (steps.jacobians.shape[1], steps.lengths):
        raise InputError(
            f"{as_option('steps')} leaves out the steps at which a layer that reads from the end begins, and "
            f"{derivatives.by} differentiates it along the whole: leave {as_option('steps')} out"
        )
    states = steps.states[: system.batch, : system.steps + 1]
    along = replace(system, state=states[:, 0], states=states.astype(system.dtype), rounding=steps.rounding)
    origin = replace(problem.origin, jacobians=derivatives.by, input_size=steps.input_size)
    return replace(problem, system=along, origin=origin)


_CELL_VIEW = f"{as_option('view')} 'cell'"


def _bias(key: str) -> str:
    (biases,) = (field for field in fields(Settings) if field.name == "biases")
    flags = {to: flag(name) for name, (to, _) in option_of(biases).keys.items()}
    return as_option(f"bias {key}", flags.get(key))


def chosen_top(asked: int | str | None, size: int) -> int | None:
    """How many of ``size`` singular values to compute, None for all."""
    if asked is None:
        return DEFAULT_TOP if size > MOST_FOR_ALL else None
    if asked == "all":
        return None
    if isinstance(asked, str) or (top := whole_number("top", asked, 1)) > size:
        raise InputError(
            f"{as_option('top')} is {quoted(asked)}, expected 1 to {size} (the size of the state) or 'all'"
        )
    return top


def as_names(cut: str | Iterable[str]) -> tuple[str, ...]:
    """One name, or several, as several."""
    return (cut,) if isinstance(cut, str) else tuple(cut)


def _fresh(cell: str | Cell | None, init: str | None) -> Cell:
    found = find(cell) if isinstance(cell, str) else cell or find(CELL)
    if not isinstance(found, Cell):
        raise InputError(f"{as_option('cell')} is {quoted(cell)}, expected a name or a gradscope.Cell")
    if not isinstance(init, str | None):
        raise InputError(f"{as_option('init')} is {quoted(init)}, expected a name such as pytorch")
    if init is not None and found.initialize is not None:
        raise InputError(
            f"{as_option('init')} is {quoted(init)}, but cell {found.name} brings its own: leave "
            f"{as_option('init')} out"
        )
    return found


def _check_own(options: Mapping[str, Any]) -> None:
    for name in ("hidden", "input_size", "init"):
        if (got := options.get(name)) is not None:
            raise InputError(
                f"{as_option(name)} is {quoted(got)}, but the checkpoint brings its own: leave "
                f"{as_option(name)} out"
            )


def _check_applies(settings: Settings, layer: Layer) -> None:
    """Raise InputError for options that change equations, of a layer that gradscope has none of."""
    if layer.derivatives is None:
        return
    for name in ("gain", "biases", "input_scale"):
        if (value := getattr(settings, name)) not in (None, {}):
            raise InputError(
                f"{as_option(name)} is {quoted(value)}, but layer {shown(layer.name)} is differentiated by "
                f"{layer.derivatives.by}, with weights and inputs as they are: leave {as_option(name)} out"
            )


def _check_sensitivity(settings: Settings, cell: Cell, layer: Layer | None, top: int | None) -> None:
    """Raise InputError where derivatives are asked for that there are none of."""
    if not settings.sensitivity:
        return
    asked = as_option("sensitivity")
    if settings.view == "cell":
        raise InputError(f"{asked} is of the chain of the whole state: leave {_CELL_VIEW} out")
    if settings.scale:
        raise InputError(
            f"{asked} is of the chain as the network has it: leave {as_option('scale')} out (a parameter's "
            "elasticity says what its factor does)"
        )
    if settings.only in ("verdict", "gain"):
        raise InputError(
            f"{asked} wants the second singular value too, to see whether the first has a derivative: leave "
            f"{as_option('only')} {settings.only} out"
        )
    if top == 1 < cell.size(2):
        raise InputError(
            f"{asked} wants the second singular value too, to see whether the first has a derivative: ask "
            f"for {as_option('top')} 2 at least"
        )
    if layer and layer.derivatives:
        raise InputError(
            f"{asked}: layer {shown(layer.name)} is differentiated by {layer.derivatives.by}, of whose steps "
            f"gradscope has the Jacobians but not the parameters: leave {asked} out"
        )


def known_paths(cell: Cell, cut: tuple[str, ...], view: str, steps: int) -> tuple[str, ...]:
    """The paths to cut, each once, if this view of the cell has them and others besides."""
    paths = paths_of(cell, view)
    if view == "cell":
        if cell.units is None or cell.units.squash is None:
            raise MisfitError(f"{_CELL_VIEW} is the chain of an LSTM's cell state, cell {cell.name} has none")
        if steps < 2:
            raise InputError(
                f"{_CELL_VIEW} starts at step 2: expected {as_option('steps')} of at least 2, got 1"
            )
    for path in cut:
        if path not in paths:
            has = f"it has {', '.join(paths)}" if paths else "it has no named paths"
            raise InputError(
                f"{as_option('cut')} {quoted(path)}: not a path of cell {cell.name} in view {view!r}: {has}"
            )
    if cut and set(cut) == set(paths):
        raise InputError(
            f"{as_option('cut')} {', '.join(cut)}: nothing is left of cell {cell.name}, keep at "
            "least one path"
        )
    return tuple(dict.fromkeys(cut))


def paths_of(cell: Cell, view: str) -> tuple[str, ...]:
    """The paths that this view of the cell has: that of its cell state holds o fixed."""
    return tuple(path for path in cell.paths if view != "cell" or path != "R_o")


def _check_range(arrays: Mapping[str, Array], dtype: str) -> None:
    """What overflows would come back as NaN from the forward pass."""
    largest = np.finfo(dtype).max
    for name, array in arrays.items():
        if not np.abs(array).max() <= largest:
            raise MisfitError(f"{name} goes beyond {dtype} (at most {largest:g}): scale it or the gain down")
