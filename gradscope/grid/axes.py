"""The axes of a grid: options of an analysis, each with the values that it takes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gradscope.cells.cell import Cell
from gradscope.errors import InputError, nearest_or_all, quoted
from gradscope.grid.values import MOST_VALUES, ValueKind
from gradscope.option import option_of
from gradscope.settings import Settings

# An axis of this name and a path, such as scale.R_z, is the factor of that path.
_SCALE = "scale."
# Why some options are no axes, and what to do instead.
_ONE_POINT = "what no row holds: give it to gradscope analyze at one point"
_WHOLE_GRID = "about all points alike: give it beside the grid"
_SAME_NUMBERS = "about the machine, and changes no number: give it beside the grid"
_NO_AXIS = {
    **dict.fromkeys(("sensitivity", "suggest"), _ONE_POINT),
    **dict.fromkeys(("reads", "map", "time_major", "only"), _WHOLE_GRID),
    **dict.fromkeys(("platform", "devices", "max_size"), _SAME_NUMBERS),
    "distributed": "about one analysis: deal the points out with --shard",
}
# Options that are numbers, or words besides.
_NUMBER_OR_WORD: Mapping[str, type[int | float]] = {"top": int, "clip": float, "zoneout": float}
_MOST_POINTS = 1_000_000
_KEYS = {
    name: key for one in fields(Settings) for name, (key, _) in option_of(one).keys.items()
}  # forget_bias: b_f

Given = Mapping[str, Any]


@dataclass(frozen=True)
class GridAxis:
    """An option by its name in Python (of a bias in the shell, forget_bias), and the values that it takes."""

    name: str
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, which have an order."""
        return all(isinstance(value, int | float) for value in self.values)

    def set_in(self, settings: Given, value: Any) -> dict[str, Any]:
        """The arguments of ``analyze`` with the option at this value."""
        if self.name in _KEYS:
            return {**settings, "biases": {**(settings.get("biases") or {}), _KEYS[self.name]: value}}
        if self.name.startswith(_SCALE):
            from gradscope.problem.scaling import scale_of

            scale = {**scale_of(settings.get("scale")), self.name.removeprefix(_SCALE): value}
            return {**settings, "scale": scale}
        return {**settings, self.name: value}


def axes_of(given: str | Sequence[str] | Mapping[str, Any]) -> tuple[GridAxis, ...]:
    """The axes of what was given: each "NAME=FROM:TO:COUNT" or "NAME=A,B,C", or a mapping of values.

    Raises InputError for an option that is not known or no axis, and for values that it does not take.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), values) for name, values in given.items()]
    else:
        pairs = [_pair(text) for text in ((given,) if isinstance(given, str) else given)]
    found = [_axis(name, values) for name, values in pairs]
    if not found:
        raise InputError("a sweep has a grid: give --grid NAME=FROM:TO:COUNT, such as gain=0.5:2:16")
    for name in (names := [axis.name for axis in found]):
        if names.count(name) > 1:
            raise InputError(f"--grid {name} is given twice: put its values into one")
    if (count := math.prod(len(axis.values) for axis in found)) > _MOST_POINTS:
        raise InputError(f"the grid has {count} points, expected at most {_MOST_POINTS}: ask for fewer")
    return tuple(found)


def check_fixed(axes: Iterable[GridAxis], settings: Given) -> None:
    """Raise InputError where an option of the grid is given beside it too."""
    for axis in axes:
        key = _KEYS.get(axis.name)
        twice = key in (settings.get("biases") or {}) if key else settings.get(axis.name) is not None
        if twice and not axis.name.startswith(_SCALE):
            said = "--" + axis.name.replace("_", "-")
            raise InputError(
                f"{axis.name} is an axis of the grid, and {said} is given: leave one of them out"
            )


def points_of(axes: Sequence[GridAxis]) -> list[dict[str, Any]]:
    """{axis: value} of every point, the last axis running first."""
    every = itertools.product(*(axis.values for axis in axes))
    return [dict(zip((axis.name for axis in axes), values, strict=True)) for values in every]


def settings_at(axes: Sequence[GridAxis], point: Given, settings: Given) -> dict[str, Any]:
    """The arguments of ``analyze`` at a point."""
    found = dict(settings)
    for axis in axes:
        found = axis.set_in(found, point[axis.name])
    return found


# What a program is compiled for; of files it may be. What paths carry are numbers that it is given.
_OF_SHAPE = ("cell", "hidden", "input_size", "steps", "batch", "dtype", "view", "top")
_OF_FILES = ("checkpoint", "layer", "inputs", "lengths")


def shapes_in(axes: Sequence[GridAxis]) -> tuple[int, list[str]]:
    """How many programs are compiled for a grid, at most, and the axes that make them several."""
    several = shaping(axes)
    return math.prod(len(axis.values) for axis in several), [axis.name for axis in several]


def shaping(axes: Sequence[GridAxis]) -> list[GridAxis]:
    """The axes whose every value may be a shape of its own."""
    return [axis for axis in axes if axis.name in (*_OF_SHAPE, *_OF_FILES) and len(axis.values) > 1]


def json_value(value: Any) -> str | float | int | bool | None:
    """A value as JSON has it, and as names of points do."""
    if isinstance(value, Cell):
        return value.name
    return str(value) if isinstance(value, Path) else value


def point_name(point: Given) -> str:
    """``gain=0.5, forget_bias=1``."""
    return ", ".join(f"{name}={_written(json_value(value))}" for name, value in point.items())


def _written(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# -- what was given ----------------------------------------------------------------------------------


def _pair(text: str) -> tuple[str, str]:
    name, equals, values = str(text).partition("=")
    if not (name and equals and values):
        raise InputError(
            f"--grid is {quoted(text)}, expected NAME=FROM:TO:COUNT or NAME=A,B,C, such as gain=0.5:2:16"
        )
    return name, values


def _axis(given: str, values: Any) -> GridAxis:
    kind = _kind(given)
    if isinstance(values, str):
        found = kind.written(values)
    else:
        found = [kind.given(value) for value in _each(kind.option, values)]
    if not 0 < len(found) <= MOST_VALUES:
        raise InputError(f"--grid {kind.option} has {len(found)} values, expected 1 to {MOST_VALUES}")
    for value, count in Counter(map(json_value, found)).items():
        if count > 1:
            raise InputError(f"--grid {kind.option} has {_written(value)} twice: leave one out")
    return GridAxis(kind.option, tuple(found))


def _kind(given: str) -> ValueKind:
    """What is taken by the option of this name, in Python or in the shell."""
    if given.startswith(_SCALE):
        return ValueKind(given, float)
    name = given.strip().removeprefix("--").replace("-", "_")
    for flag, key in _KEYS.items():
        if name in (flag, key):
            return ValueKind(flag, float)
    if name in _NO_AXIS:
        raise InputError(f"--grid {quoted(given)}: no axis, for it is {_NO_AXIS[name]}")
    able = {one.name: option_of(one) for one in fields(Settings) if one.name not in _NO_AXIS}
    able = {one: said for one, said in able.items() if said.section and not said.keys and one != "scale"}
    if name not in able:
        names = sorted({*able, *_KEYS, f"{_SCALE}PATH"} - {"cut"})
        raise InputError(f"--grid {quoted(given)}: there is no such option{nearest_or_all(name, names)}")
    said = able[name]

    def word(text: str) -> Any:
        if said.choices and text not in said.choices:
            raise ValueError(f"expected one of {', '.join(said.choices)}")
        return said.parse(text)

    if said.parse in (int, float):
        return ValueKind(name, said.parse)
    return ValueKind(name, _NUMBER_OR_WORD.get(name), word)


def _each(name: str, values: Any) -> list[Any]:
    """The values of an array, a range, a list; raises InputError for what has none."""
    try:
        return [value.item() if hasattr(value, "item") else value for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"grid[{name!r}] is {quoted(values)}, expected its values or a text such as '0.5:2:16'"
        ) from error
