"""The rows of a grid in one: what a sweep returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradscope.errors import ExitCode, InputError, counted
from gradscope.gate.budgets import Outcome
from gradscope.report.phase import MOST_PHASES, axes_in, phases
from gradscope.report.row_training import training_columns
from gradscope.rows.journal import SWEEP, Row, failed
from gradscope.track.tracked import checks_in
from gradscope.version import __version__

if TYPE_CHECKING:
    from gradscope.report.pictures.picture import Picture

SCHEMA, SWEPT = SWEEP, "gradscope/swept/1"
_NUMBERS = (
    "log10_norm",
    "log10_norm_error",
    "rate",
    "theory_rate",
    "horizon",
    "log10_largest_gain",
    "saturated",
)


@dataclass(frozen=True)
class Sweep:
    """A row for every point of a grid.

    points : mappings, see ``gradscope schema sweep``; of a point that could not be measured "error" says why.
    fail_on : verdicts that are looked for.
    """

    points: Sequence[Row]
    fail_on: tuple[str, ...] = ()

    @property
    def axes(self) -> dict[str, list[Any]]:
        """{axis: its values}."""
        return axes_in(self.points)

    def rows(self) -> list[dict[str, Any]]:
        """{column: value} of every point: the axes, then what of its row is one number or one text."""
        names = (*_NUMBERS, "verdict", "error")
        training = training_columns(self.points)
        return [
            {
                **dict.fromkeys(self.axes),
                **row["settings"],
                **{name: row.get(name) for name in names},
                **{name: values[place] for name, values in training.items()},
            }
            for place, row in enumerate(self.points)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/swept/1``: the axes, and the row of every point."""
        return {"schema": SWEPT, "gradscope": __version__, "axes": self.axes, "rows": list(self.points)}

    @property
    def exit_code(self) -> int:
        """1 where a limit is broken or a verdict matched, else 2 where something could not be measured."""
        lost, beyond, matched = self.ended().values()
        return ExitCode.judged(broken=beyond or matched, lost=lost)

    def ended(self) -> dict[str, list[str]]:
        """{what became of some: these points}, of all that fails."""
        kinds: dict[str, Callable[[Row], bool]] = {
            "not measured": lambda row: failed(row) or _having(row, "unmeasured"),
            "beyond a limit": lambda row: _having(row, "error"),
            "--fail-on matched": lambda row: row.get("verdict") in self.fail_on,
        }
        return {
            what: [str(row["point"]) for row in self.points if became(row)] for what, became in kinds.items()
        }

    def figure(self, size: str = "column") -> Picture:
        """The phase diagram; size : as of ``gradscope plot``. Raises InputError where no axis is numeric."""
        from gradscope.report.pictures.figures import picture_of_rows

        return picture_of_rows(self.points, "phase", size)

    def checked(self) -> Sweep:
        """Itself; raises InputError where no point at all could be measured."""
        if all(map(failed, self.points)):
            reasons = dict.fromkeys(str(row["error"]) for row in self.points)
            raise InputError(f"no point of the grid could be measured: {next(iter(reasons), 'it has none')}")
        return self

    def _repr_html_(self) -> str:
        drawn = 0 < len(phases(self.points)) <= MOST_PHASES
        return self.figure("page").svg() if drawn else f"<p>{self!r}</p>"

    def __repr__(self) -> str:
        axes = ", ".join(f"{len(values)} {name}" for name, values in self.axes.items())
        return f"<Sweep of {counted(len(self.points), 'point')}: {axes}>"


def _having(row: Row, outcome: Outcome) -> bool:
    return any(one.outcome == outcome for one in checks_in(row))
