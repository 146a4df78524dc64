"""Checkpoints one after another, each measured unless a row of it is there already."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradscope.errors import InputError
from gradscope.gate.budgets import MetricBudget
from gradscope.report.analysis import Analysis
from gradscope.track.journal import Row, natural
from gradscope.track.rows import key_of, row_about, row_of, row_of_error

Measure = Callable[[Path], Analysis]


@dataclass(frozen=True)
class Question:
    """What is asked of every checkpoint: arguments of ``analyze``, limits, whether gain and horizon do."""

    settings: Mapping[str, Any]
    budgets: Sequence[MetricBudget] = ()
    light: bool = False

    def key(self, checkpoint: Path) -> str:
        """See ``key_of``."""
        asked = {**self.settings, "budgets": [vars(one) for one in self.budgets]}
        return key_of(checkpoint, asked, self.light)


def follow(
    work: Sequence[tuple[int, str]], of: int, question: Question, known: Sequence[Row], measure: Measure
) -> Iterator[tuple[Row, bool]]:
    """A row for each (place, checkpoint) of ``of``, in this order, and whether it is new.

    known : rows of earlier; of the same content and question they are kept, under another name too.
    """
    sound = [row for row in known if row.get("key") and not row.get("error")]
    found = {row["key"]: row for row in sound}
    named = {(row["key"], row["checkpoint"]) for row in sound}
    for index, name in work:
        key = None
        try:
            key = question.key(Path(name))
            if key in found:
                row = found[key] | {"checkpoint": name, "index": index, "of": of}
                yield row, (key, name) not in named
                continue
            measured = row_of(measure(Path(name)), question.budgets, question.light)
        except InputError as error:
            measured = row_of_error(error)
        row = row_about(name, index, of, key, measured)
        if key and not row.get("error"):
            found[key] = row
        yield row, True


def out_of_order(names: Sequence[str]) -> tuple[str, str] | None:
    """Two neighbours that stand against the order of the numbers in them, None where all do not."""
    pairs = itertools.pairwise(names)
    return next(((one, other) for one, other in pairs if natural(other) < natural(one)), None)
