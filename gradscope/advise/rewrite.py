"""A repair from beginning to end: read, set knobs, write, read and analyse what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gradscope.advise.knobs import KnobSetting
from gradscope.advise.repair import (
    Layers,
    Repaired,
    check_new,
    check_some,
    floss,
    layers_of,
    set_knobs,
    settings_of,
)
from gradscope.advise.suggest import settings_of_knob, suggested
from gradscope.cells import find
from gradscope.cells.cell import Cell
from gradscope.checkpoints import Decided
from gradscope.checkpoints.array_map import rules_of
from gradscope.checkpoints.editing import editable, written_as
from gradscope.errors import InputError, shown
from gradscope.files import write_whole
from gradscope.measure.batch import Means
from gradscope.problem.checks import whole_number
from gradscope.problem.problems import Problems
from gradscope.report.analysis import Analysis
from gradscope.settings import Policy, Repairing, Settings

Prepare = Callable[[Settings], tuple[Problems, Means]]
Analyze = Callable[[Problems, Policy, Means], Analysis]


def rewritten(settings: Repairing, horizon: int | None, prepare: Prepare, analyze: Analyze) -> Repaired:
    """The checkpoint written again; raises InputError, and then nothing is written.

    horizon : steps that the gain is to reach, in place of a target; prepare : makes the problems of settings,
    with what there is to measure them with; analyze : measures them.
    """
    suffix = written_as(settings.checkpoint, settings.output)
    source = Path(str(settings.checkpoint))
    target = source if settings.output is None else Path(settings.output)
    check_new(target, source, in_place=settings.in_place)
    knobs = (settings.knob,) if isinstance(settings.knob, str) else tuple(settings.knob)
    check_some(knobs, settings.floss)
    problems, means = prepare(settings)
    before = layers_of(problems)
    chosen = settings_of(knobs, lambda name: _found(name, settings, horizon, problems, means))
    after = _changed(settings, before, chosen, problems, means)
    changed = _written(settings, source, target, suffix, before, after)
    again = replace(settings, checkpoint=target, cell=settings.cell or _cell_of(problems), activation=None)
    return Repaired(
        source=str(source),
        file=str(target),
        knobs=(*map(str, chosen), *([f"floss {settings.floss}"] if settings.floss else [])),
        tensors=tuple(changed),
        before=analyze(problems, settings.policy, means),
        after=analyze(prepare(again)[0], settings.policy, means),
        flossed=settings.floss or 0,
    )


def _found(
    name: str, settings: Repairing, horizon: int | None, problems: Problems, means: Means
) -> list[str]:
    """The settings of a knob that reach the target."""
    tried = suggested(
        problems,
        settings.policy,
        means,
        target=settings.target,
        horizon=horizon,
        knobs=[name],
        report=settings.trying,
    )
    return settings_of_knob(tried, name)


def _changed(
    settings: Repairing, before: Layers, chosen: Sequence[KnobSetting], problems: Problems, means: Means
) -> Layers:
    """The layers with these knobs set, then flossed if that is asked for."""
    after = set_knobs(before, chosen)
    if settings.floss is None:
        return after
    count = whole_number("floss", settings.floss, 1)
    say = settings.trying or (lambda _: None)
    return floss(problems, after, settings.policy, means, count, say)


def _written(
    settings: Repairing, source: Path, target: Path, suffix: str, before: Layers, after: Layers
) -> list[str]:
    """Write the new file, and return which tensors changed."""
    cell = find(settings.cell) if isinstance(settings.cell, str) else settings.cell
    decided = Decided(cell, settings.activation, settings.layout)
    reads = (settings.reads,) if isinstance(settings.reads, str) else settings.reads or ()
    rules = rules_of(settings.map)
    with editable(
        source, decided, list(before), reads=reads, rules=rules, max_size=settings.max_size
    ) as file:
        data, changed = file.written(before, after, suffix)
    try:
        write_whole(target, data)
    except OSError as error:
        raise InputError(f"cannot write {shown(target)}: {error.strerror}") from error
    return list(changed)


def _cell_of(problems: Problems) -> Cell | None:
    """The cell of the layers, where it is one: a state dict alone may leave it open."""
    cells = {problem.system.cell.name: problem.system.cell for problem in problems.layers}
    return next(iter(cells.values())) if len(cells) == 1 else None
