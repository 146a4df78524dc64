"""Suggestions as a page to be read: the verdict, the settings that reach the target, those that do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope.advise.knobs import LEAST_FACTOR, MOST_FACTOR, MOST_SHIFT
from gradscope.errors import shown
from gradscope.report.page import bullet, note, page, prose, section
from gradscope.report.table import headline
from gradscope.report.verdict import scientific
from gradscope.report.views import Look

if TYPE_CHECKING:
    from gradscope.advise.suggest import Suggestion, Suggestions

_TRIED = (
    f"tried are biases up to {MOST_SHIFT:g} more or less, factors from {LEAST_FACTOR:g} to {MOST_FACTOR:g}; "
    "a dozen evaluations a knob at most"
)


def render_suggestions(found: Suggestions, look: Look) -> str:
    """The page as text."""
    return page(_parts(found, look), look.terminal)


def _parts(found: Suggestions, look: Look) -> Iterable[RenderableType]:
    yield prose(Text(headline(found.analysis)))
    full = found.analysis.full
    yield bullet(f"Horizon {full.horizon.median:g} of {full.steps} steps. Target: {found.target}.")
    if len(found.layers) > 1:
        yield bullet(
            ", ".join(f"layer{number}: {shown(name)}" for number, name in enumerate(found.layers)) + "."
        )
    yield from map(bullet, found.analysis.verdict.notes)
    if found.reached:
        yield bullet("That is reached already: no weight is to be changed.")
    if look.verdict_only:
        return
    if found.reached:
        if found.suggestions:
            body = Group(*(_lines(one, found) for one in found.suggestions), note(_FIRST), note(_VERIFIED))
            yield section("With inputs of mean 0 and variance 1", body)
        return
    reaching = [one for one in found.suggestions if one.reaches]
    if reaching:
        body = Group(*(_lines(one, found) for one in reaching), note(_VERIFIED))
        yield section("Settings that reach it", body)
    others = [one for one in found.suggestions if not one.reaches]
    if others:
        yield section(
            "No setting of these reaches it", Group(*(_at_best(one) for one in others), note(_TRIED))
        )
    yield section("Beyond numbers", Group(*map(bullet, found.advice)))
    yield from _next(found, reaching)


_FIRST = (
    "saturated gates keep a gain near 1 by letting nothing in or out; normalise first, and ask again on "
    "those inputs"
)
_VERIFIED = (
    "each measured by analysing the changed network on these inputs, not predicted; what training makes of "
    "it is another question"
)


def _lines(one: Suggestion, found: Suggestions) -> RenderableType:
    """A setting, and below it what it does."""
    full = found.analysis.full
    assert one.verified_log10 is not None
    assert one.horizon is not None
    horizon = f"horizon {full.horizon.median:g} -> {one.horizon:g}"
    gain = f"gain {scientific(full.log10_norm.median)} -> {scientific(one.verified_log10)}"
    first = []
    if one.predicted_log10 is not None:
        first = [f"(first order said {one.predicted_horizon} and {scientific(one.predicted_log10)})"]
    shares = [f"{name} {_percent(a)} -> {_percent(b)} %" for name, (a, b) in one.shares.items()]
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(f" {shown(one.words)}", style="bold"))
    grid.add_row(Text("   " + "   ".join([horizon, gain, *first])))
    beside = ["shares: " + ", ".join(shares)] if shares else []
    beside += [] if one.monotone else ["the gain is not monotone in this knob"]
    if beside:
        grid.add_row(Text("   " + "; ".join(beside), style="dim"))
    return prose(grid)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _at_best(one: Suggestion) -> RenderableType:
    if one.verified_log10 is None:
        return bullet(f"{one.words}: the state leaves the range of numbers")
    called = one.words if one.evaluations == 1 else f"{one.knob}: at best {one.words}"
    times = f"; {one.evaluations} evaluations" if one.evaluations > 1 else ""
    gain = scientific(one.verified_log10)
    return bullet(f"{called}: horizon {one.horizon:g}, gain {gain} ({one.verdict}{times})")


def _next(found: Suggestions, reaching: list[Suggestion]) -> Iterable[RenderableType]:
    """The command that writes a setting, of a checkpoint."""
    source = found.analysis.problem["source"]
    setting = next((one.setting for one in reaching if one.setting), None)
    if source == "initialised" or setting is None:
        return
    command = f"gradscope repair {shown(source)} -o repaired.safetensors --knob '{setting}'"
    yield section("Next, with the options that were given here", Text(command))
