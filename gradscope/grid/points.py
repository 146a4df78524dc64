"""The points of a grid as work: what is asked at each, and what its row says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradscope.errors import InputError
from gradscope.gate.budgets import MetricBudget
from gradscope.grid.axes import GridAxis, json_value, point_name, points_of, settings_at, shaping
from gradscope.report.analysis import Analysis
from gradscope.report.subject import subject
from gradscope.rows.journal import Row
from gradscope.rows.keys import key_of, told_settings
from gradscope.track.rows import row_of, row_of_error

Given = Mapping[str, Any]


@dataclass(frozen=True)
class PointFound:
    """What was found at a point; theory_rate : see ``mean_field.theory_rate``."""

    analysis: Analysis
    theory_rate: float | None = None


# Measures with these arguments of ``analyze``, in their order; as many of the first as it does side by side.
Measure = Callable[[Sequence[Given]], Sequence[PointFound | InputError]]


# Points of one shape that may be measured together, at most.
_BESIDE = 64


class Points:
    """All points of a grid, and what is asked at them.

    settings : arguments of ``analyze`` that hold at every point; light : whether gain and horizon do.
    """

    def __init__(
        self,
        axes: Sequence[GridAxis],
        settings: Given,
        measure: Measure,
        budgets: Sequence[MetricBudget] = (),
        *,
        light: bool = True,
    ) -> None:
        self.axes, self.settings, self.budgets, self.light = axes, settings, budgets, light
        self.points = points_of(axes)
        self._measure = measure
        self._found: dict[int, PointFound | InputError] = {}

    def tasks(self, work: Sequence[int]) -> list[tuple[int, Point]]:
        """Those of these places, with them."""
        names = [axis.name for axis in shaping(self.axes)]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for place in work:
            alike.setdefault(tuple(self.points[place][name] for name in names), []).append(place)
        beside = {place: some for places in alike.values() for some in _even(places) for place in some}
        return [(place, Point(self, place, beside[place])) for place in work]

    def settings_of(self, place: int) -> dict[str, Any]:
        """The arguments of ``analyze`` at a point."""
        return settings_at(self.axes, self.points[place], self.settings)

    def outcome(self, place: int, beside: Sequence[int]) -> PointFound:
        """What is found at a point, measured together with those beside it; raises InputError."""
        if place not in self._found:
            together = [place, *(other for other in beside if other not in {place, *self._found})]
            filled = together + together[-1:] * (len(beside) - len(together))  # one size, one program
            found = self._measure([self.settings_of(other) for other in filled])
            self._found |= dict(zip(together, found, strict=False))
        found_here = self._found.pop(place)
        if isinstance(found_here, InputError):
            raise found_here
        return found_here


def _even(places: Sequence[int]) -> list[list[int]]:
    """Parts of one size, the last filled up with its own last: a batch of another is another program."""
    count = -(-len(places) // _BESIDE)
    size = -(-len(places) // count)
    parts = [list(places[first : first + size]) for first in range(0, len(places), size)]
    return [part + part[-1:] * (size - len(part)) for part in parts]


@dataclass(frozen=True)
class Point:
    """A point of a grid (``rows.following.Piece``); beside : the places that are measured with its own."""

    points: Points
    place: int
    beside: Sequence[int]

    @property
    def name(self) -> str:
        """``gain=0.5, forget_bias=1``."""
        return point_name(self.points.points[self.place])

    def key(self) -> str:
        """Of what is asked at it, with what is in the files."""
        whole = self.points
        return key_of(
            {
                "settings": told_settings(whole.settings_of(self.place)),
                "axes": [axis.name for axis in whole.axes],
                "light": whole.light,
                "budgets": [vars(one) for one in whole.budgets],
            }
        )

    def measure(self) -> Row:
        """What was found, as ``track.rows.row_of`` has it, with the values of the axes before it."""
        found, whole = self.points.outcome(self.place, self.beside), self.points
        analysis = found.analysis
        return {
            "settings": self._settings(),
            **row_of(analysis, whole.budgets, whole.light),
            "theory_rate": found.theory_rate,
            "subject": subject(analysis.problem, len(analysis.layers), analysis.full.size),
        }

    def unmeasured(self, error: InputError) -> Row:
        """Why nothing was."""
        return {"settings": self._settings(), **row_of_error(error)}

    def _settings(self) -> dict[str, Any]:
        return {name: json_value(value) for name, value in self.points.points[self.place].items()}
