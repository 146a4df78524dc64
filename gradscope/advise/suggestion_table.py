"""Suggestions as a page to be read: the verdict, then what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType

from gradscope.errors import counted, shown
from gradscope.report.page import bullet, page, prose
from gradscope.report.remedies_table import remedy_sections
from gradscope.report.table import headline_in_colour
from gradscope.report.views import Look

if TYPE_CHECKING:
    from gradscope.advise.suggest import Suggestions


def render_suggestions(found: Suggestions, look: Look) -> str:
    """The page as text."""
    return page(_parts(found, look), look.terminal)


def _parts(found: Suggestions, look: Look) -> Iterable[RenderableType]:
    yield prose(headline_in_colour(found.analysis))
    full = found.analysis.full
    yield bullet(f"Horizon {full.horizon.median:g} of {counted(full.steps, 'step')}. Target: {found.target}.")
    if len(found.layers) > 1:
        yield bullet(
            ", ".join(f"layer{number}: {shown(name)}" for number, name in enumerate(found.layers)) + "."
        )
    yield from map(bullet, found.analysis.verdict.notes)
    if not look.verdict_only:
        yield from remedy_sections(found.remedies, str(found.analysis.problem["source"]))
