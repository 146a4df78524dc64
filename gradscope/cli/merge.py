"""``gradscope merge``: the rows of many processes in one."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from gradscope.cli.group import Command
from gradscope.cli.kept_rows import say_line, say_missing
from gradscope.cli.options import as_path, options, pick
from gradscope.errors import ExitCode, InputError, listed, shown
from gradscope.rows.journal import Journal, deduplicated, failed, missing
from gradscope.settings import option
from gradscope.track.track_formats import FORMATS_OF_ROWS, row_writer


@dataclass(frozen=True, kw_only=True)
class Merging:
    """Where the rows go, and how."""

    format: str = option(
        "jsonl", "Options", "A table, a JSON object a line, or CSV.", choices=FORMATS_OF_ROWS
    )
    output: Path | None = option(
        None, "Options", "Write to FILE.", flags=("-o", "--output"), metavar="FILE", parse=as_path
    )
    color: str = option(
        "auto",
        "Options",
        "Colour in the table; NO_COLOR and FORCE_COLOR are heeded.",
        choices=("auto", "always", "never"),
    )


@click.command(cls=Command, short_help="Put the rows of many processes together.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@options(Merging)
def merge(files: tuple[Path, ...], **given: Any) -> int:
    """Put the rows together that shards of track, or of check, have written: each once, in order.

    \b
    Examples:
      gradscope merge rows/ > all.jsonl
      gradscope merge rows.1-of-2.jsonl rows.2-of-2.jsonl -o all.jsonl
      gradscope merge rows/ --format table

    FILES are what track -o, or check --format jsonl -o, wrote, or folders of them (*.jsonl). A line that was
    torn when its process was killed is left out. Which checkpoints have no row is said, and the exit code is
    2 then: call the shards again, they measure no more than what is missing.
    """
    from gradscope.cli.streams import check_writable, write_result
    from gradscope.report.terminal import terminal_for

    merging = pick(Merging, given)
    paths = [path for file in files for path in _within(file) if path != merging.output]
    check_writable(merging.output, *paths)
    journals = [Journal.read(path) for path in paths]
    for journal in journals:
        if journal.torn:
            say_line(f"{shown(journal.path)}: {journal.torn} torn, left out")
    rows = deduplicated(row for journal in journals for row in journal.rows)
    if not rows:
        raise InputError(
            f"{listed([str(path) for path in files])}: no rows, expected what track -o has written"
        )
    if merging.format != "jsonl" and not all("checkpoint" in row for row in rows):
        raise InputError(f"--format {merging.format} is of rows of track; those of check are merged as jsonl")
    light = all("converged" in row for row in rows)
    terminal = terminal_for(merging.color, to_file=merging.output is not None)
    writer = row_writer(merging.format, [str(row.get("checkpoint")) for row in rows], terminal, light=light)
    text = writer.head(f"{len(rows)} rows") + "".join(map(writer.line, rows)) + writer.foot(rows)
    write_result(text, merging.output)
    return _complete(rows)


def _within(file: Path) -> Iterator[Path]:
    if not file.is_dir():
        if not file.exists():
            raise InputError(f"{shown(file)}: No such file or directory, expected rows of gradscope track")
        yield file
        return
    yield from sorted(file.glob("*.jsonl"))


def _complete(rows: list[dict[str, Any]]) -> int:
    """Say which rows there should be besides."""
    errors = [row["checkpoint"] for row in rows if failed(row)]
    if errors:
        say_line(f"not read: {len(errors)} of {len(rows)} ({listed(errors, most=3)})")
    if (found := missing(rows)) and (places := found[0]):
        of = found[1]
        say_missing(places, of, str(rows[0]["schema"]))
        return ExitCode.USAGE
    return ExitCode.USAGE if errors else ExitCode.OK
