"""Checkpoints as work: what is asked of each, and what becomes of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradscope.errors import InputError
from gradscope.gate.budgets import MetricBudget
from gradscope.gate.places import BudgetPlace
from gradscope.report.analysis import Analysis
from gradscope.rows.journal import Row, natural
from gradscope.rows.keys import hash_of, key_of, told_settings
from gradscope.track.rows import row_of, row_of_error

Measure = Callable[[Path], Analysis]


@dataclass(frozen=True)
class Question:
    """What is asked of every checkpoint: arguments of ``analyze``, limits, whether gain and horizon do.

    places : {metric of a limit: where it stands}.
    """

    settings: Mapping[str, Any]
    budgets: Sequence[MetricBudget] = ()
    light: bool = False
    places: Mapping[str, BudgetPlace] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A file to be measured (``rows.following.Piece``)."""

    name: str
    question: Question
    measured: Measure

    def key(self) -> str:
        """Of its bytes and of what is asked."""
        asked = self.question
        return key_of(
            {
                "checkpoint": hash_of(Path(self.name)),
                "settings": told_settings(asked.settings),
                "budgets": [vars(one) for one in asked.budgets],
                "light": asked.light,
            }
        )

    def measure(self) -> Row:
        """See ``row_of``."""
        asked = self.question
        return row_of(self.measured(Path(self.name)), asked.budgets, asked.light, asked.places)

    def unmeasured(self, error: InputError) -> Row:
        """See ``row_of_error``."""
        return row_of_error(error)


def out_of_order(names: Sequence[str]) -> tuple[str, str] | None:
    """Two neighbours that stand against the order of the numbers in them, None where all do not."""
    pairs = itertools.pairwise(names)
    return next(((one, other) for one, other in pairs if natural(other) < natural(one)), None)
