"""What is to be analysed: cell, parameters, inputs, initial state. All checks of what the user gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.factors import factor_parameters, with_factors
from gradscope.custom_types import Array
from gradscope.errors import InputError, MisfitError, as_option, quoted, shown
from gradscope.linearize.budget import check_memory
from gradscope.linearize.system import System, reversed_within
from gradscope.problem.checks import check_choices, real, whole_number
from gradscope.problem.clip import Clip
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
from gradscope.problem.subject import subject_of
from gradscope.settings import DEFAULT_TOP, DTYPE, MOST_FOR_ALL, Only, Settings

if TYPE_CHECKING:
    from gradscope.checkpoints import Layer
    from gradscope.checkpoints.derivatives import Derivatives


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
    check_choices(settings)
    given, lengths = _given(settings), given_lengths(settings.lengths)
    subject = subject_of(settings, layer)
    if layer:
        layer.check_inputs(given=given is not None)
        layer.check_state(given=settings.initial_state is not None)
    cell, n, view, dtype = subject.cell, subject.hidden, settings.view, settings.dtype or DTYPE
    shape, lengths = extents(subject.sizes, given, lengths, of_layer=layer is not None)
    cut = known_paths(cell, as_names(settings.cut), view, min(lengths or shape[1:2]))
    top = chosen_top(settings.top, n if view == "cell" else cell.size(n))
    check_memory(cell, n, shape, top is not None and view != "cell")
    _check_sensitivity(settings, cell, layer, top)

    batch, steps, input_size = shape
    parameters = subject.parameters(input_size, steps)
    inputs = given.first(steps, lengths) if given else drawn_sequences(settings.inputs, shape, subject.seed)
    inputs = _scaled_inputs(inputs, settings.input_scale)
    if subject.direction == "backward":
        inputs = reversed_within(inputs, lengths)
    state = subject.state(settings.initial_state, batch)
    _check_range({**parameters, "inputs": inputs, "initial state": state}, dtype)
    run = _scaled(cell, n, parameters, settings)
    problem = Problem(
        system=System(*run, inputs, state, lengths, subject.direction, dtype),
        cut=cut,
        view=view,
        top=top,
        accuracy=settings.accuracy,
        only=settings.only,
        sensitivity=settings.sensitivity,
        twice=layer.twice if layer else (),
        origin=_with_inputs(subject.origin, settings, given),
    )
    return _differentiated(problem, layer.derivatives) if layer and layer.derivatives else problem


def _given(settings: Settings) -> Sequences | None:
    """The sequences that are given, read now or before; None where they are to be made."""
    if isinstance(settings.inputs, Sequences):
        return settings.inputs
    return given_sequences(settings.inputs, time_major=settings.time_major)


def _with_inputs(origin: Origin, settings: Settings, given: Sequences | None) -> Origin:
    """With what there is to tell of the inputs and the state before them."""
    return replace(
        origin,
        inputs=given.label if given else settings.inputs,
        input_scale=settings.input_scale,
        embedding=given.table.name if given and given.table else None,
        initial_state=None if settings.initial_state is None else label(settings.initial_state),
    )


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
