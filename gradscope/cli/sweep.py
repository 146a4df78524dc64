"""``gradscope sweep``: a row for every point of a grid of options, and its phase diagram."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from gradscope.cli.options import Process, input_files, options, pick, pick_settings, ready_to_measure
from gradscope.cli.output import Output
from gradscope.cli.progress import progress_bar
from gradscope.cli.streams import guarded_stdout, hushed, sayer, write_result
from gradscope.option import option
from gradscope.rows.journal import SWEEP
from gradscope.settings import Level, Sweeping

if TYPE_CHECKING:
    from gradscope.grid.points import Point, Points
    from gradscope.grid.sweep import Sweep
    from gradscope.rows.journal import Journal


@dataclass(frozen=True, kw_only=True)
class Sweeps(KeptRows):
    """What becomes of the rows."""

    shard: str | None = option(None, "Rows", f"Only every Nth point from the Ith {SHARD}", metavar="I/N|auto")
    fail_on: tuple[str, ...] = option(
        (), "Limits", "Exit 1 on this verdict at any point (repeatable).",
        choices=get_args(Level), repeatable=True,
    )  # fmt: skip
    quiet: bool = option(
        False, "Output", "Of the table the first line, nothing on stderr but what failed.",
        flags=("-q", "--quiet"),
    )  # fmt: skip


_MOST_USED = (
    *("--grid", "--cell", "--hidden", "--steps", "--init", "--inputs", "--only", "--shard", "--output"),
    *("--max", "--min", "--fail-on", "--format", "--also", "--json", "--quiet"),
)


@click.command(
    cls=Command,
    short_help="Measure a grid of options: a phase diagram.",
    most_used=_MOST_USED,
    lacking=as_flags(Sweeping.without()),
)
@options(Sweeping, Sweeping.names())
@options(Sweeps)
@options(Output, ("format", "also", "color"))
@options(Process, ["compile_cache"])
def sweep(**given: Any) -> int:
    """Measure gain and horizon at every point of a grid of options: rows, and a phase diagram.

    \b
    Examples:
      gradscope sweep --cell lstm --grid gain=0.5:2:16 --grid forget_bias=-1:5:16
      gradscope sweep --cell rnn --init gaussian --grid gain=0.5:2:16 --grid input_scale=0.1:10:16:log
      gradscope sweep --grid cell=lstm,gru --grid gain=0.1:10:9:log --grid seed=0,1,2
      gradscope sweep --grid gain=0.5:2:64 --grid steps=50,200 -o rows/ --shard 2/8
      gradscope sweep model.pt --inputs x.npy --readout head --grid clip=0.01:10:7:log
      gradscope plot rows.jsonl phase -o phase.svg

    Options with a grid take the values FROM:TO:COUNT or A,B,C; all others hold at every point. A point that
    cannot be measured is a row with its reason; the others go on, and the exit code is 2, or 1 where a limit
    is broken. Lines in the diagram are where the rate is zero, as measured and, for random tanh networks and
    gated cells at rest, as mean-field theory expects. With -o another call goes on where this one stopped.
    """
    from gradscope.grid.axes import axes_of, shapes_in

    sweeps, process, output = pick(Sweeps, given), pick(Process, given), pick(Output, given)
    output = replace(output, quiet=sweeps.quiet)
    grid = given.pop("grid", ())
    settings = pick_settings(given)
    ready_to_measure(settings)
    say = sayer(sweeps.quiet)
    asked = Sweeping(grid=grid, **settings)
    asked.check()
    axes = axes_of(grid)  # what is wrong with it is said before JAX is imported
    programs, names = shapes_in(axes)
    if names:
        say(f"{programs} shapes ({', '.join(names)}): as many programs are compiled at most, seconds each")
    shard, points = shard_here(sweeps.shard), _points(asked, sweeps, process)
    count = len(points.points)
    places = [place for place, _ in dealt(shard, range(count), "points", say)]
    journal = journal_at(sweeps.output, shard, SWEEP, say, input_files(settings))
    output.ready("Sweep", *input_files(settings), *([journal.path] if journal else []))
    found = _run(sweeps, output, points.tasks(places), count, journal)
    say_ended(found.ended(), len(found.points), SWEEP)
    if sweeps.quiet:
        say_reasons(found.points)
    elif output.format == "table":
        say_kept(journal, len(found.points), SWEEP)
    return found.exit_code


def _points(asked: Sweeping, sweeps: Sweeps, process: Process) -> Points:
    with guarded_stdout(), hushed(sweeps.quiet), importing(compile_cache=process.compile_cache):
        from gradscope.api import points_of_grid

        return points_of_grid(asked, sweeps.budgets)


def _run(
    sweeps: Sweeps, output: Output, tasks: Sequence[tuple[int, Point]], of: int, journal: Journal | None
) -> Sweep:
    """Every row: a JSON object a line as they come, or all in one at the end."""
    from gradscope.grid.sweep import Sweep

    streams, rows = output.format == "jsonl", []
    shows = streams and not journal
    with progress_bar(sweeps.quiet or (shows and sys.stdout.isatty())) as pace:
        for row in coming(tasks, of, SWEEP, journal, quiet=sweeps.quiet):
            rows.append(row)
            if pace:
                pace.report(len(rows), len(tasks))
            if shows:
                write_result(json.dumps(row, allow_nan=False) + "\n", None)
    found = Sweep(rows, sweeps.fail_on).checked()
    output.write(found, first=not streams)
    return found
