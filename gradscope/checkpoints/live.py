"""The recurrent layers of a model in memory, as those of a file: what ``from_torch`` and its like return."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.checkpoints.found import Contents, Found
from gradscope.checkpoints.fronts import placed_in
from gradscope.checkpoints.recording import Recorded
from gradscope.custom_types import Array
from gradscope.errors import InputError, quoted, reason, shown
from gradscope.formats.tensors import Tensor, Tensors

# How a loop over time of the user's own is analysed: as a step that is called, or by Jacobians of it.
CALLED = (
    "a loop over time that it writes itself is analysed if its step is a {} of its own, called as h = "
    "self.step(x_t, h), and a batch is given"
)
BY_JACOBIANS = (
    "of a loop over time that it writes itself give the one-step Jacobians: numpy.save('j.npy', "
    "[jax.jacrev(step)(h, x) for ...]), each at its own state h, then gradscope chain j.npy"
)
LOOPING = (
    "a loop over time that it writes itself, of Python or a scan, is one where a batch is given and a weight "
    "is used three times at least, each time on what came of the use before (not through stop_gradient, or "
    f"in a jax.lax.while_loop); {BY_JACOBIANS.replace('of a loop over time that it writes itself', 'else')}"
)


@dataclass(frozen=True)
class Live:
    """A model in memory, its weights as they were when this was made: a checkpoint for ``gradscope.analyze``.

    source : how messages and JSON call it; layers : its recurrent layers; tensors : all its tensors by name.
    recorded : what the layers read and put out in a forward pass of the model's own, if there was one.
    way : how a loop of the user's own is analysed, where that is no layer here.
    Raises InputError where there is no recurrent layer.
    """

    source: str
    layers: tuple[Found, ...]
    tensors: Tensors
    recorded: Recorded | None = None
    way: str = ""

    def __post_init__(self) -> None:
        if not self.layers:
            said = f"{self.source}: holds no recurrent layer of this library, expected one that does"
            raise InputError(f"{said}; {self.way}" if self.way else said)

    def __str__(self) -> str:
        return self.source

    def contents(self, also: Iterable[str] = ()) -> Contents:
        """The layers, the names of the other tensors, and of these the values of ``also``."""
        contents = Contents.of(self.layers, self.tensors, also)
        return placed_in(contents, self.tensors)


def doubt_of(module: Any, package: str, cells: Iterable[str]) -> str:
    """What speaks against a cell being its library's: a call of its own, "" where it has none."""
    kind = next((kind for kind in type(module).__mro__ if "__call__" in vars(kind)), type(module))
    if kind.__module__.split(".")[0] == package:
        return ""
    choice = " or ".join(f"--cell {cell}" for cell in cells)
    return (
        f"is a {shown(type(module).__name__)}, which computes in its own way: if that is what the library's "
        f"cell does all the same, add {choice}; a batch, given beside the model, shows it"
    )


def source(function: str, model: object) -> str:
    """What a model in memory is called: ``from_torch(Sequential)``."""
    return f"{function}({type(model).__name__})"


def wrong(function: str, model: object, expected: str) -> InputError:
    """The error for an object that is no model of the library."""
    return InputError(f"{function} was given {quoted(model)}, expected {expected}")


def kept(name: str, convert: Callable[[], Any]) -> Tensor:
    """A copy of a tensor of the model; one without values here (meta, quantised) is an error when read."""
    called = f"tensor {quoted(name)}"
    try:
        values = np.array(convert())
    except Exception as error:  # each library fails in its own ways
        return Tensor(called, _without_values(called, reason(error)))
    return Tensor(called, lambda: values, values.nbytes)


def _without_values(called: str, why: str) -> Callable[[], Array]:
    def load() -> Array:
        raise InputError(f"{called} has no values to read ({why}): give the model in float32 on the CPU")

    return load
