"""One forward pass of an Equinox model, in which its recurrent cells note what every step does."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np

from gradscope.checkpoints.found import Found
from gradscope.checkpoints.jax.steps import CellSteps, call_model, recorded_steps, wrapped
from gradscope.checkpoints.recording import Recorded

_BATCH = (
    "batch is what the model is called with: an array, a tuple of arguments, or a dict of them by name; of a "
    "model of one sequence give one, or equinox.filter_vmap(model)"
)


def equinox_recorded(
    source: str, model: Any, batch: Any, layers: Sequence[Found], cells: Mapping[str, Any]
) -> Recorded:
    """What the cells of a model, by name, read and put out as it runs over a batch, in inference mode.

    Raises InputError where the forward pass fails.
    """
    return recorded_steps(source, layers, partial(_listening, model, batch, cells), _BATCH)


@contextmanager
def _listening(
    model: Any, batch: Any, cells: Mapping[str, Any], steps: CellSteps
) -> Iterator[Callable[[], Any]]:
    inference = importlib.import_module("equinox").nn.inference_mode(model)
    there = {name: cell for name, cell in cells.items() if name in steps.weights}
    with wrapped({type(cell) for cell in there.values()}, "__call__", partial(_cell, steps, there)):
        yield partial(call_model, inference, batch)


def _cell(
    steps: CellSteps,
    cells: Mapping[str, Any],
    cell: Any,
    own: Callable[..., Any],
    args: Any,
    keywords: Any,
) -> Any:
    """The call of a cell, (input, hidden) -> hidden."""
    result, name = own(*args, **keywords), _name(cell, cells)
    if name is None:
        return result
    try:
        inputs, before, *_ = inspect.signature(own).bind(*args, **keywords).arguments.values()
    except ValueError:
        steps.fail(
            name, "is called with one argument: a cell is recorded where it is called as (input, hidden)"
        )
        return result
    before, after = (state if isinstance(state, tuple | list) else (state,) for state in (before, result))
    return steps.step(name, inputs, before, after[0], after, result, cell.weight_hh.dtype)


def _name(cell: Any, cells: Mapping[str, Any]) -> str | None:
    """Which cell of the model it is, which may have been taken apart and put together on the way.

    Its recurrent weights are the same array, or hold the same numbers in another precision.
    """
    for name, one in cells.items():
        if cell.weight_hh is one.weight_hh:
            return name
    for name, one in cells.items():
        if type(cell) is type(one) and _same(cell.weight_hh, one.weight_hh):
            return name
    return None


def _same(weights: Any, known: Any) -> bool:
    if isinstance(weights, jax.core.Tracer) or weights.shape != known.shape:
        return False
    return np.array_equal(np.asarray(weights), np.asarray(known.astype(weights.dtype)))
