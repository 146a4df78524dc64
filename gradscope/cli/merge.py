"""``gradscope merge``: the rows of many processes in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradscope.cli.group import Command
from gradscope.cli.kept_rows import say_ended, say_missing
from gradscope.cli.options import options, pick
from gradscope.cli.output import Output
from gradscope.cli.streams import say
from gradscope.errors import ExitCode, InputError, listed, shown
from gradscope.option import option
from gradscope.report.views import FORMATS
from gradscope.rows.journal import (
    CHECK,
    KINDS,
    SWEEP,
    TRACK,
    Journal,
    Row,
    deduplicated,
    failed,
    missing,
    the_only,
)

if TYPE_CHECKING:
    from gradscope.grid.sweep import Sweep
    from gradscope.track.tracked import Track


@dataclass(frozen=True, kw_only=True)
class Merging:
    """What the rows become."""

    format: str = option(
        "jsonl",
        "Output",
        "As track and check have them: rows as JSON lines, or any other format of the whole.",
        choices=tuple(FORMATS),
        shorthands={"--json": ("json", "The same as --format json.")},
    )


@click.command(cls=Command, short_help="Put the rows of many processes together.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@options(Merging)
@options(Output, ("output", "also", "color"))
def merge(files: tuple[Path, ...], **given: Any) -> int:
    """Put the rows together that shards of track, sweep or check have written: each once, in order.

    \b
    Examples:
      gradscope merge rows/ > all.jsonl
      gradscope merge rows.1-of-2.jsonl rows.2-of-2.jsonl -o all.jsonl
      gradscope merge rows/ --format table
      gradscope merge checks/ --format github --also junit=report.xml

    FILES are what track -o, sweep -o or check --shard -o wrote, or folders of them (*.jsonl). A line that was
    torn when its process was killed is left out. The exit code is what one process would have had: 1 where a
    budget is broken. Where rows are missing that is said, and the exit code is else 2: call the shards again,
    they do no more than what is missing.
    """
    merging = pick(Merging, given)
    output = replace(pick(Output, given), format=merging.format)
    paths = [path for file in files for path in _within(file) if path != output.output]
    journals = [Journal.read(path) for path in paths]
    for journal in journals:
        if journal.torn:
            say(f"{shown(journal.path)}: {journal.torn} torn, left out")
    kinds = {str(row["schema"]) for journal in journals for row in journal.rows}
    if not kinds:
        raise InputError(
            f"{listed([str(path) for path in files])}: no rows, expected those of track, sweep or check"
        )
    if len(kinds) > 1:
        raise InputError(f"rows are of {' and '.join(sorted(kinds))}: merge those of one command at a time")
    kind, merged = _MERGED[kinds.pop()]
    output.ready(kind, *paths)
    return merged(journals, output)


def _merge_checks(journals: Sequence[Journal], output: Output) -> int:
    """What ``check`` would have told of all analyses."""
    from gradscope.gate.checks import Checked
    from gradscope.track.checked import checks_of

    rows = the_only(journals)
    places, of = missing(rows) or ([], 0)
    if places:
        say_missing(places, of, CHECK)
    checks = checks_of(rows)
    lost = [Checked(f"analysis {place + 1}", failure="no shard has its row") for place in places]
    checks = replace(checks, analyses=(*checks.analyses, *lost))
    output.write(checks)
    return checks.exit_code


def _merge_track(journals: Sequence[Journal], output: Output) -> int:
    from gradscope.report.row_training import training_columns
    from gradscope.track.tracked import Track, checks_in

    rows = deduplicated(row for journal in journals for row in journal.rows)
    for row in rows:
        checks_in(row)
    light = all("converged" in row for row in rows if not failed(row))
    track = Track(tuple(rows), light=light, training=tuple(training_columns(rows)))
    _say_several(rows)
    output.write(track)
    return _exit_code(track, rows)


def _merge_sweep(journals: Sequence[Journal], output: Output) -> int:
    from gradscope.grid.sweep import Sweep

    rows = deduplicated(row for journal in journals for row in journal.rows)
    swept = Sweep(rows).checked()
    output.write(swept)
    return _exit_code(swept, rows)


def _exit_code(whole: Track | Sweep, rows: Sequence[Row]) -> int:
    """As of one process, which has lost what no row is of."""
    say_ended(whole.ended(), len(rows), str(rows[0]["schema"]))
    complete, code = _complete(rows), whole.exit_code
    return ExitCode.judged(broken=code == ExitCode.FINDING, lost=code or not complete)


# What each kind of rows makes, and how.
_MERGED: Mapping[str, tuple[str, Callable[[Sequence[Journal], Output], int]]] = {
    CHECK: ("Checks", _merge_checks),
    SWEEP: ("Sweep", _merge_sweep),
    TRACK: ("Track", _merge_track),
}


def _within(file: Path) -> Iterator[Path]:
    if not file.is_dir():
        if not file.exists():
            raise InputError(
                f"{shown(file)}: No such file or directory, expected rows of track, sweep or check"
            )
        yield file
        return
    yield from sorted(file.glob("*.jsonl"))


def _say_several(rows: Sequence[Row]) -> None:
    count: dict[str, int] = {}
    for row in rows:
        count[row["checkpoint"]] = count.get(row["checkpoint"], 0) + 1
    if several := [name for name, times in count.items() if times > 1]:
        which = f"{len(several)} of {len(count)} checkpoints ({listed(several, most=3)})"
        say(f"{which} have rows of other content, options or limits too")


def _complete(rows: Sequence[Row]) -> bool:
    """Whether there is a row of all; says which there should be besides."""
    schema, found = str(rows[0]["schema"]), missing(rows)
    if found is None:
        totals = " and of ".join(sorted({str(row.get("of")) for row in rows}))
        say(f"rows are of {totals} {KINDS[schema].many}: whether some are missing is not known")
    elif found[0]:
        say_missing(found[0], found[1], schema)
    return not (found and found[0])
