"""Remedies as sections to be read: settings that reach the target, those that do not, field advice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradscope.errors import shown
from gradscope.report.page import bullet, note, prose, section
from gradscope.report.remedies import LEAST_FACTOR, MOST_FACTOR, MOST_SHIFT
from gradscope.report.verdict import scientific

if TYPE_CHECKING:
    from gradscope.report.remedies import Remedies, Suggestion

_TRIED = (
    f"tried are biases up to {MOST_SHIFT:g} more or less, factors from {LEAST_FACTOR:g} to {MOST_FACTOR:g}; "
    "a dozen evaluations a knob at most"
)
_FIRST = (
    "saturated gates keep a gain near 1 by letting nothing in or out; normalise first, and ask again on "
    "those inputs"
)
_BESIDE = "each with the layers beside it as they are"
_VERIFIED = (
    "each measured by analysing the changed network on these inputs, not predicted; what training makes of "
    "it is another question"
)


def remedy_sections(remedies: Sequence[Remedies], source: str) -> Iterable[RenderableType]:
    """The sections of all that stand side by side; source : the checkpoint, or "initialised"."""
    for one in remedies:
        if one.layers:
            yield Text(f"\n{', '.join(one.layers)}", style="bold underline")
            yield bullet(f"Horizon {one.horizon:g}, gain {scientific(one.log10_norm)}.")
        yield from _of_one(one)
    if advice := dict.fromkeys(sentence for one in remedies for sentence in one.advice):
        yield section("Beyond numbers", Group(*map(bullet, advice)))
    if len(remedies) > 1:
        yield note(f"\n{_BESIDE}")
    yield from _next(remedies, source)


def _of_one(found: Remedies) -> Iterable[RenderableType]:
    if found.reached:
        yield bullet(f"The target, {found.target}, is reached already: no weight is to be changed.")
        if found.suggestions:
            body = Group(*(_lines(one, found) for one in found.suggestions), note(_FIRST), note(_VERIFIED))
            yield section("With inputs of mean 0 and variance 1", body)
        return
    if reaching := [one for one in found.suggestions if one.reaches]:
        body = Group(*(_lines(one, found) for one in reaching), note(_VERIFIED))
        yield section(f"Settings that reach {found.target}", body)
    if others := [one for one in found.suggestions if not one.reaches]:
        title = f"No setting of these reaches {found.target}"
        yield section(title, Group(*map(_at_best, others), note(_TRIED)))


def _lines(one: Suggestion, found: Remedies) -> RenderableType:
    """A setting, and below it what it does."""
    if one.verified_log10 is None or one.horizon is None:
        return _at_best(one)
    horizon = f"horizon {found.horizon:g} -> {one.horizon:g}"
    gain = f"gain {scientific(found.log10_norm)} -> {scientific(one.verified_log10)}"
    first = []
    if one.predicted_log10 is not None:
        first = [f"(first order said {one.predicted_horizon} and {scientific(one.predicted_log10)})"]
    shares = [f"{name} {_percent(a)} -> {_percent(b)} %" for name, (a, b) in one.shares.items()]
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(f" {shown(one.words)}", style="bold"))
    grid.add_row(Padding("   ".join([horizon, gain, *first]), (0, 0, 0, 3)))
    beside = ["shares: " + ", ".join(shares)] if shares else []
    beside += [] if one.monotone else ["the gain is not monotone in this knob"]
    if beside:
        grid.add_row(Padding(Text("; ".join(beside), style="dim"), (0, 0, 0, 3)))
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


def _next(remedies: Sequence[Remedies], source: str) -> Iterable[RenderableType]:
    """The command that writes a setting, of a checkpoint."""
    settings = [
        next((one.setting for one in each.suggestions if one.reaches and one.setting), None)
        for each in remedies
        if not each.reached
    ]
    if source == "initialised" or not any(settings):
        return
    knobs = " ".join(f"--knob '{setting}'" for setting in settings if setting)
    command = f"gradscope repair {shown(source)} -o repaired.safetensors {knobs}"
    yield section("Next, with the options that were given here", Text(command))
