"""A repaired checkpoint as a page to be read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope.advise.repair import exponents
from gradscope.errors import listed, shown
from gradscope.report.page import bullet, headed, note, page, prose, section
from gradscope.report.table import STYLES, headline_in_colour
from gradscope.report.verdict import scientific
from gradscope.report.views import Look

if TYPE_CHECKING:
    from gradscope.advise.repair import Repaired


def render_repaired(found: Repaired, look: Look) -> str:
    """The page as text."""
    return page(_parts(found, look), look.terminal)


def _parts(found: Repaired, look: Look) -> Iterable[RenderableType]:
    yield prose(headline_in_colour(found.after))
    if look.verdict_only:
        return
    yield bullet(f"{shown(found.file)} is {shown(found.source)} with {listed(list(found.knobs), 12)}.")
    yield bullet(
        f"Changed: {listed(list(found.tensors), 12)}; all others are those of the original, to the last bit."
    )
    yield section("Before and after, each analysed from its file", _before_and_after(found))
    if found.flossed:
        yield section("Largest Lyapunov exponents", Group(_flossed(found), note(_EXPONENTS)))


_EXPONENTS = (
    "ln sigma_i / T, nats per step, of the median sequence; condition: sigma_1 / sigma_m of its chain"
)
# Exponents that are told, of however many were moved.
_MOST = 6


def _flossed(found: Repaired) -> Table:
    count = min(found.flossed, _MOST)
    table = headed("", *(f"lambda_{k + 1}" for k in range(count)), "condition")
    for name, one in (("before", found.before), ("after", found.after)):
        each, condition = exponents(one, count)
        table.add_row(name, *(f"{value:+.4f}" for value in each), _condition(condition))
    return table


def _condition(log10: float | None) -> str:
    """As a number, or why it is none."""
    if log10 is None:
        return "not all known"
    return scientific(log10) if math.isfinite(log10) else "infinite"


def _before_and_after(found: Repaired) -> Table:
    table = headed("", "gain", "horizon", "verdict")
    for name, one in (("before", found.before), ("after", found.after)):
        level = one.verdict.level
        table.add_row(
            name,
            scientific(one.full.log10_norm.median),
            f"{one.full.horizon.median:g}",
            Text(level, style=STYLES[level]),
        )
    return table
