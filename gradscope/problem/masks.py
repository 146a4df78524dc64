"""Masks that training draws, as they were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradscope.cells.masked import MaskLaw
from gradscope.errors import InputError, as_option, quoted
from gradscope.problem.checks import real, whole_number
from gradscope.settings import Settings

_OPTIONS: dict[str, MaskLaw] = {
    "h_detach": "h-detach",
    "recurrent_dropout": "recurrent-dropout",
    "zoneout": "zoneout",
}


@dataclass(frozen=True)
class Drawn:
    """Masks of a law.

    probability : with which h is detached, a unit of h is dropped, or keeps its old state; of zoneout there
        may be two, of the cell state and of the output. count : of each sequence; seed : they are drawn with.
    """

    law: MaskLaw
    probability: tuple[float, ...]
    count: int
    seed: int

    @property
    def name(self) -> str:
        """Of the option that asks for it."""
        return {law: name for name, law in _OPTIONS.items()}[self.law]

    @property
    def option(self) -> str:
        """As the user asked for it."""
        return as_option(self.name)


def drawn_of(settings: Settings) -> Drawn | None:
    """What is asked for, None where nothing is; raises InputError for what cannot be meant."""
    asked = {name: value for name in _OPTIONS if (value := getattr(settings, name)) is not None}
    count = whole_number("masks", settings.masks, 1)
    if not asked:
        return None
    if len(asked) > 1:
        raise InputError(f"{' and '.join(map(as_option, asked))}: expected one of them at a time")
    ((name, value),) = asked.items()
    given = _numbers(name, value)
    if len(given) > 1 + (name == "zoneout"):
        raise InputError(f"{as_option(name)} is {quoted(value)}, expected one probability")
    if not all(0 <= p <= 1 for p in given) or (name == "recurrent_dropout" and given[0] == 1):
        below = "below 1" if name == "recurrent_dropout" else "at most 1"
        raise InputError(
            f"{as_option(name)} is {quoted(value)}, expected a probability, at least 0 and {below}"
        )
    return Drawn(_OPTIONS[name], given, count, whole_number("seed", settings.seed, 0))


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    try:
        return tuple(real(name, float(part)) for part in parts)
    except (TypeError, ValueError):
        raise InputError(
            f"{as_option(name)} is {quoted(value)}, expected a probability such as 0.25"
        ) from None
