"""What is run: a cell that is initialised, or a layer of a checkpoint; and the options that are about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.cells import find
from gradscope.cells.cell import Cell
from gradscope.cells.initializers import initialize
from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option, flag, quoted, shown
from gradscope.option import option_of
from gradscope.problem.checks import real, whole_number
from gradscope.problem.initial_state import initial_states
from gradscope.problem.origin import Origin
from gradscope.settings import CELL, HIDDEN, INIT, Settings

if TYPE_CHECKING:
    from gradscope.checkpoints import Layer


@dataclass(frozen=True)
class Subject:
    """A cell, and where its parameters and its state before the first step come from.

    sizes : of hidden, input_size, steps and batch those that are known before the inputs are; layer : None of
        a cell that is initialised; init : how, None where the cell or the layer brings its own.
    gain, biases, seed : as in Origin.
    """

    cell: Cell
    sizes: Mapping[str, int]
    layer: Layer | None
    init: str | None
    gain: float
    biases: Mapping[str, float]
    seed: int

    @property
    def hidden(self) -> int:
        """Units n."""
        return self.sizes.get("hidden", HIDDEN)

    @property
    def direction(self) -> str:
        """Of time, in which the sequence is read."""
        return self.layer.direction if self.layer else "forward"

    def parameters(self, input_size: int, steps: int) -> dict[str, Array]:
        """Of its cell, with gain and biases; what overflows is infinite."""
        start = self.cell
        if layer := self.layer:
            start = replace(start, initialize=lambda *_: layer.parameters)
        changed: dict[str, Any] = {"init": self.init or INIT, "gain": self.gain, "biases": self.biases}
        with np.errstate(over="ignore"):
            return initialize(start, self.hidden, input_size, seed=self.seed, steps=steps, **changed)

    def state(self, given: Any, batch: int) -> Array:
        """(B, m), before the first step: as given, else the layer's own, else zeros."""
        if given is not None:
            name = self.layer.name if self.layer else ""
            return initial_states(given, {name: self.cell.extents(self.hidden)}, batch)[name]
        own = self.layer.state if self.layer else np.zeros(self.cell.size(self.hidden))
        return np.tile(own, (batch, 1))

    @property
    def origin(self) -> Origin:
        """What there is to tell of it."""
        made = Origin(init=self.init, gain=self.gain, biases=self.biases, seed=self.seed)
        if not (layer := self.layer):
            return made
        made = replace(made, source=layer.source, layer=layer.name)
        return replace(made, not_applied=layer.not_applied, assumed=layer.assumed)


def subject_of(settings: Settings, layer: Layer | None) -> Subject:
    """The subject that is asked for; raises InputError for options that are none of it."""
    asked = {name: getattr(settings, name) for name in ("hidden", "input_size", "steps", "batch")}
    sizes = {name: whole_number(name, value, 1) for name, value in asked.items() if value is not None}
    seed = whole_number("seed", settings.seed, 0)
    gain = 1.0 if settings.gain is None else real("gain", settings.gain, 0.0)
    biases = {key: real(_bias(key), value) for key, value in (settings.biases or {}).items()}
    if layer is None:
        cell = _fresh(settings.cell, settings.init)
        init = None if cell.initialize else settings.init or INIT
        return Subject(cell, sizes, None, init, gain, biases, seed)
    _check_own({"init": settings.init, **sizes})
    _check_applies(settings, layer)
    sizes |= {"hidden": layer.hidden, "input_size": layer.input_size}
    return Subject(layer.cell, sizes, layer, None, gain, biases, seed)


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


def _bias(key: str) -> str:
    (biases,) = (field for field in fields(Settings) if field.name == "biases")
    flags = {to: flag(name) for name, (to, _) in option_of(biases).keys.items()}
    return as_option(f"bias {key}", flags.get(key))
