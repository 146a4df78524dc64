"""``gradscope track``: a row for every checkpoint of a run, as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from gradscope.cli.elsewhere import as_flags
from gradscope.cli.group import Command
from gradscope.cli.importing import importing
from gradscope.cli.kept_rows import (
    SHARD,
    KeptRows,
    coming,
    dealt,
    journal_at,
    say_ended,
    say_kept,
    say_reasons,
    shard_here,
)
from gradscope.cli.options import Process, options, pick, pick_said, ready_to_measure
from gradscope.cli.output import Output
from gradscope.cli.streams import sayer, write_result
from gradscope.config_file import ConfigFile
from gradscope.errors import InputError, flag, nearest_or_all, quoted, shown
from gradscope.option import option
from gradscope.rows.journal import TRACK, natural
from gradscope.settings import NO_ROW, OF_TRAINING, Level, Settings

if TYPE_CHECKING:
    from gradscope.gate.config import PlannedRun
    from gradscope.report.analysis import Analysis
    from gradscope.rows.journal import Journal
    from gradscope.track.following import Question
    from gradscope.track.tracked import Track

_OF_FRESH = "is of a fresh cell, a checkpoint has its own: leave it out"
_NOT_HERE = {**NO_ROW, **dict.fromkeys(("hidden", "input_size", "init"), _OF_FRESH)}
TRACKED = tuple(
    one.name for one in fields(Settings) if one.name != "checkpoint" and one.name not in _NOT_HERE
)


@dataclass(frozen=True, kw_only=True)
class Tracking(KeptRows):
    """What becomes of the rows."""

    name: str | None = option(
        None,
        "Rows",
        "Options and budgets of this analysis of the settings file, as check has them.",
        metavar="NAME",
    )
    light: bool = option(
        False,
        "Rows",
        "Gain and horizon alone, as lower bounds that are raised until they settle: milliseconds each.",
    )
    shard: str | None = option(
        None,
        "Rows",
        f"Only every Nth checkpoint from the Ith {SHARD}",
        metavar="I/N|auto",
    )
    sort: bool = option(False, "Rows", "In the order of the numbers in their names, not as given.")
    fail_on: tuple[str, ...] = option(
        (), "Limits", "Exit 1 on this verdict (repeatable).", choices=get_args(Level), repeatable=True
    )
    quiet: bool = option(
        False, "Output", "No rows on stdout, nothing on stderr but what failed.", flags=("-q", "--quiet")
    )


_MOST_USED = (
    *("--light", "--shard", "--sort", "--output", "--max", "--min", "--fail-on", "--format", "--also"),
    *("--json", "--layer", "--cell", "--inputs", "--steps", "--only", "--quiet"),
)


@click.command(
    cls=Command,
    short_help="Measure the checkpoints of a run, a row each.",
    most_used=_MOST_USED,
    lacking=as_flags(_NOT_HERE),
)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path())
@options(Tracking)
@options(Output, ("format", "also", "color"))
@options(Settings, TRACKED)
@options(Process, ["compile_cache"])
def track(checkpoints: tuple[str, ...], **given: Any) -> int:
    """Measure the checkpoints of a run: a row for each as it comes, and the course of every number.

    \b
    Examples:
      gradscope track runs/step_*.pt
      gradscope track runs/step_*.pt --inputs x.npy --light
      gradscope track runs/step_*.pt --format jsonl | jq -r .verdict
      gradscope track runs/step_*.pt -o rows.jsonl --max log10_norm=3
      gradscope track runs/step_*.pt --max log10_norm=3 --also junit=report.xml
      gradscope track runs/step_*.pt --shard 2/8 -o rows/

    A row has the gain, rate and horizon of the whole state, the path that carries the gradient, the gate that
    is saturated most, and the verdict. A checkpoint that cannot be read is a row with its error. The exit
    code is 1 where a limit is broken, else 2 where something could not be measured. With -o rows are kept by
    the content of their checkpoint, the options and the version: another call goes on where this one stopped.
    """
    from gradscope.track.following import Question

    tracking, process = pick(Tracking, given), pick(Process, given)
    output = pick(Output, given)
    said, shared = pick_said(given)
    planned = _planned(tracking.name)
    budgets = (*tracking.budgets, *(one for one in planned.budgets if not one.of_change))
    settings = {**shared, **{name: one for name, one in planned.settings.items() if name in TRACKED}, **said}
    ready_to_measure(settings)
    names = sorted(checkpoints, key=natural) if tracking.sort else list(checkpoints)
    shard = shard_here(tracking.shard)
    say = sayer(tracking.quiet)
    _say_order(names, say)
    work = dealt(shard, names, "checkpoints", say)
    journal = journal_at(tracking.output, shard, TRACK, say, list(map(Path, names)))
    output.ready("Track", *map(Path, names), *([journal.path] if journal else []))
    question = Question(settings, budgets, tracking.light, planned.places)
    found = _run(tracking, output, process, question, names, work, journal)
    say_ended(found.ended(), len(found.rows), TRACK)
    if tracking.quiet:
        say_reasons(found.rows)
    elif output.format == "table":
        say_kept(journal, len(found.rows), TRACK)
    return found.exit_code


def _planned(name: str | None) -> PlannedRun:
    """The analysis of the settings file that is asked for, or one of nothing."""
    from gradscope.gate.config import PlannedRun, planned

    if name is None:
        return PlannedRun("", {}, (), (), {})
    if not isinstance(file := click.get_current_context().obj, ConfigFile):
        raise InputError(f"--name is {quoted(name)}, but there is no settings file here or above")
    every = {one.name: one for one in planned(file)}
    if name not in every:
        raise InputError(f"--name is {quoted(name)}{nearest_or_all(name, every)}")
    return every[name]


def _say_order(names: Sequence[str], say: Callable[[str], None]) -> None:
    from gradscope.track.following import out_of_order

    if pair := out_of_order(names):
        one, other = map(shown, pair)
        say(f"{one} stands before {other}: as given, which the shell orders by letters; --sort by number")


def _run(
    tracking: Tracking,
    output: Output,
    process: Process,
    question: Question,
    names: Sequence[str],
    work: Sequence[tuple[int, str]],
    journal: Journal | None,
) -> Track:
    """Every row, written as it comes."""
    from gradscope.report.row_training import columns_of
    from gradscope.track.following import Checkpoint
    from gradscope.track.track_formats import row_writer
    from gradscope.track.tracked import Track

    measure = _measuring(question, compile_cache=process.compile_cache)
    track = Track((), tracking.fail_on, tracking.light, columns_of(question.settings))
    writer = row_writer(output.format, [name for _, name in work], output.look(), track)
    shows = not tracking.quiet and not (journal and output.format == "jsonl")
    _write(writer.head(_subject(len(work), names, tracking)) if shows else "")
    found = []
    pieces = [(place, Checkpoint(name, question, measure)) for place, name in work]
    for row in coming(pieces, len(names), TRACK, journal, quiet=tracking.quiet):
        _write(writer.line(row) if shows else "")
        found.append(row)
    _write(writer.foot(found) if shows else "")
    output.write(track.of(found), first=False)
    return track.of(found)


def _write(text: str) -> None:
    if text:
        write_result(text, None)


def _measuring(question: Question, *, compile_cache: bool) -> Callable[[Path], Analysis]:
    """What measures a checkpoint; JAX is imported for the first of them."""
    settings = dict(question.settings)
    for name in ("top", "accuracy", "only", *OF_TRAINING):
        if question.light and settings.get(name) not in (None, "full", "all"):
            said = f"{flag(name)} is given, but --light measures the gain alone"
            raise InputError(f"{said}: leave one of them out")
    if question.light:
        _check_light(question)

    @cache
    def prepared() -> Callable[[Path], Analysis]:
        with importing(compile_cache=compile_cache):
            from gradscope.api import analyze, analyze_light
            from gradscope.cells import find
            from gradscope.measure.light import LightProbe

        if ":" in str(settings.get("cell", "")):
            settings["cell"] = find(settings["cell"])  # one object: what is compiled for it serves all
        if not question.light:
            return lambda path: analyze(checkpoint=path, **settings)
        probe = LightProbe()
        return lambda path: analyze_light(Settings(**{**settings, "checkpoint": path}), probe)

    return lambda path: prepared()(path)


def _check_light(question: Question) -> None:
    """Raise InputError for a limit that no row could be held to; one of a part may be of a layer's gain."""
    from gradscope.gate.metrics import check_name

    for one in question.budgets:
        if check_name(one.measured).needs not in ("verdict", "gain") and one.severity != "off":
            raise InputError(
                f"a limit is of {shown(one.metric)}, but --light measures gain and horizon alone: leave one "
                "of them out"
            )


def _subject(count: int, names: Sequence[str], tracking: Tracking) -> str:
    how = (
        "; light: gain and horizon are lower bounds, settled where further passes add nothing"
        * tracking.light
    )
    many = f"{count} of {len(names)}" if count < len(names) else str(count)
    return f"{many} checkpoint{'s' if len(names) != 1 else ''}{how}"
