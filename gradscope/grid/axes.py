"""The axes of a grid: options of an analysis with their values, written out or as a range."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gradscope.cells.cell import Cell
from gradscope.errors import InputError, nearest_or_all, quoted
from gradscope.settings import Settings, option_of

# An axis of this name and a path, such as scale.R_z, is the factor of that path.
_SCALE = "scale."
# What a row says nothing of, or what is about the process.
_NO_AXIS = (
    *("layer", "reads", "map", "time_major", "readout", "readout_at", "adjoint", "clip", "tbptt", "masks"),
    *(
        "h_detach",
        "recurrent_dropout",
        "zoneout",
        "sensitivity",
        "suggest",
        "only",
        "platform",
        "devices",
        "distributed",
    ),
)
_RANGE = re.compile(r"([^:]+):([^:]+):([^:]+?)(:log)?")
_MOST_VALUES, _MOST_POINTS = 10_000, 1_000_000
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
    name = given.strip().removeprefix("--").replace("-", "_")
    name, parse = (given, float) if given.startswith(_SCALE) else _option(name, given)
    if isinstance(values, str):
        found = _written_out(name, values, parse)
    else:
        found = [_value(name, value, parse) for value in _each(name, values)]
    if not 0 < len(found) <= _MOST_VALUES:
        raise InputError(f"--grid {name} has {len(found)} values, expected 1 to {_MOST_VALUES}")
    for value in found:
        if found.count(value) > 1:
            raise InputError(f"--grid {name} has {_written(json_value(value))} twice: leave one out")
    return GridAxis(name, tuple(found))


def _option(name: str, given: str) -> tuple[str, Callable[[str], Any]]:
    """The option of this name, in Python or in the shell, and what its texts stand for."""
    for flag, key in _KEYS.items():
        if name in (flag, key):
            return flag, float
    known = {one.name: option_of(one) for one in fields(Settings)}
    able = {one for one, said in known.items() if said.section and not said.keys and one not in _NO_AXIS}
    if name not in able:
        if name in known:
            raise InputError(f"--grid {quoted(given)}: no axis of a grid, whose rows say nothing of it")
        names = sorted({*able, *_KEYS, f"{_SCALE}PATH"} - {"scale", "cut"})
        raise InputError(f"--grid {quoted(given)}: there is no such option{nearest_or_all(name, names)}")
    said = known[name]

    def parse(text: str) -> Any:
        value = said.parse(text)
        if said.choices and value not in said.choices:
            raise ValueError(f"expected one of {', '.join(said.choices)}")
        return value

    return name, said.parse if said.parse in (int, float) else parse


def _each(name: str, values: Any) -> list[Any]:
    """The values of an array, a range, a list; raises InputError for what has none."""
    try:
        return [value.item() if hasattr(value, "item") else value for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"grid[{name!r}] is {quoted(values)}, expected its values or a text such as '0.5:2:16'"
        ) from error


def _value(name: str, value: Any, parse: Callable[[str], Any]) -> Any:
    """A value that Python gave, as one of the option's."""
    if isinstance(value, str):
        return _parsed(name, value, parse)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and parse is int:
        return _whole(name, value, value)
    if number and parse is float:
        return _parsed(name, repr(float(value)), parse)
    if parse in (int, float) or not (number or isinstance(value, Path | Cell)):
        raise InputError(f"--grid {name} has {quoted(value)}, expected {_kind(parse)}")
    return value


def _kind(parse: Callable[[str], Any]) -> str:
    return "a whole number" if parse is int else "a number" if parse is float else "text, a path or a cell"


def _parsed(name: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        value = parse(text.strip())
    except ValueError as error:
        expected = f"expected {_kind(parse)}" if parse in (int, float) else str(error)
        raise InputError(f"--grid {name} has {quoted(text)}, {expected}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"--grid {name} has {quoted(text)}, expected a finite number")
    return value


def _written_out(name: str, text: str, parse: Callable[[str], Any]) -> list[Any]:
    """The values of ``0.5:2:16``, ``1:1000:4:log`` or ``a,b,c``."""
    if ":" not in text or parse not in (int, float):
        return [_parsed(name, part, parse) for part in text.split(",")]
    match = _RANGE.fullmatch(text)
    if not match:
        raise InputError(
            f"--grid {name} is {quoted(text)}, expected FROM:TO:COUNT such as 0.5:2:16 (with :log at the end "
            "by equal factors), or A,B,C"
        )
    low, high = (_parsed(name, end, float) for end in match.groups()[:2])
    count = _parsed(name, match[3], int)
    if not 2 <= count <= _MOST_VALUES or low == high:
        raise InputError(
            f"--grid {name} is {quoted(text)}: a range has two ends and 2 to {_MOST_VALUES} values; of one "
            f"value give {name}={match[1]}"
        )
    if match[4] and min(low, high) <= 0:
        raise InputError(f"--grid {name} is {quoted(text)}: equal factors are of numbers above 0")
    return [
        _whole(name, text, value) if parse is int else value for value in _between(low, high, count, match[4])
    ]


def _between(low: float, high: float, count: int, log: str | None) -> list[float]:
    """So many from one end to the other, both as they were given; short decimals stay short."""
    parts = [k / (count - 1) for k in range(count)]
    if log:
        inner = [math.exp((1 - part) * math.log(low) + part * math.log(high)) for part in parts]
    else:
        inner = [(1 - part) * low + part * high for part in parts]
    # What is zero by rounding is zero: digits are counted from the largest.
    digits = 12 - math.ceil(math.log10(max(abs(low), abs(high))))
    shortened = [float(f"{value:.12g}") if log else round(value, digits) for value in inner[1:-1]]
    return [low, *(value + 0.0 for value in shortened), high]


def _whole(name: str, given: Any, value: float) -> int:
    if value != round(value):
        raise InputError(
            f"--grid {name} is {quoted(given)}, which has {value:g}, expected whole numbers: choose a count "
            "that divides the range, or give A,B,C"
        )
    return int(value)
