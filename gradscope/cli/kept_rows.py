"""What commands that make rows share: their part of the work, and the file that keeps what is done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gradscope.cli.streams import check_writable, delivering, guarded_stdout, hushed, say
from gradscope.errors import InputError, listed, shown
from gradscope.option import option
from gradscope.rows.following import Piece, follow
from gradscope.rows.journal import KINDS, Journal, Row, deduplicated, failed
from gradscope.rows.shards import Shard

if TYPE_CHECKING:
    from gradscope.gate.budgets import MetricBudget

T = TypeVar("T")

SHARD = (
    "on; auto: as Slurm, Kubernetes or GRADSCOPE_SHARD_INDEX and GRADSCOPE_SHARDS say (auto/N where they do "
    "not say how many)."
)


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """Where the rows are kept, and what they are held to."""

    output: str | None = option(
        None,
        "Rows",
        "Append the rows to FILE (JSON lines), and keep those that are there: what was stopped goes on. In "
        "a folder (FOLDER/) every shard has its file.",
        flags=("-o", "--output"),
        metavar="FILE",
    )
    max: tuple[str, ...] = option(
        (), "Limits", "Exit 1 where a metric is above, such as log10_norm=3 (repeatable).",
        metavar="METRIC=X", repeatable=True,
    )  # fmt: skip
    min: tuple[str, ...] = option(
        (), "Limits", "Exit 1 where a metric is below, such as horizon=100 (repeatable).",
        metavar="METRIC=X", repeatable=True,
    )  # fmt: skip

    @property
    def budgets(self) -> tuple[MetricBudget, ...]:
        """The limits of --max and --min."""
        from gradscope.gate.budgets import budgets_of

        return budgets_of(self.min, self.max)


def dealt(
    shard: Shard | None, whole: Sequence[T], what: str, say: Callable[[str], None]
) -> list[tuple[int, T]]:
    """The part of the work that is this process's, with the places; raises InputError where it has none."""
    if shard is None:
        return list(enumerate(whole))
    work = shard.of(whole)
    if not work:
        raise InputError(f"{shard} has none of {len(whole)} {what}: ask for fewer")
    say(f"{shard} ({shard.source}): {len(work)} of {len(whole)} {what}")
    return work


def shard_here(text: str | None) -> Shard | None:
    """What --shard says, with the help of the environment."""
    return Shard.parse(text, os.environ) if text else None


# Suffixes of what rows are not, and the format that is meant.
_OTHERS = {".html": "html", ".htm": "html", ".csv": "csv", ".md": "markdown", ".xml": "junit"}


def journal_at(
    output: str | None,
    shard: Shard | None,
    schema: str,
    say: Callable[[str], None],
    read: Sequence[Path | None] = (),
) -> Journal | None:
    """The rows of before, and where more go; in a folder every shard has its file.

    output : what -o says; read : files that it may not be.
    """
    if output is None:
        return None
    if output == "-":
        raise InputError("-o -: rows are kept in a file: leave -o out, or name one")
    path = Path(output)
    if format_ := _OTHERS.get(path.suffix.lower()):
        raise InputError(
            f"-o {shown(output)} keeps rows, as JSON lines: give -o {shown(path.with_suffix('.jsonl'))}, and "
            f"--also {format_}={shown(output)}"
        )
    with delivering(f"-o {output}"):
        if path.is_dir() or output.endswith(("/", os.sep)):
            path.mkdir(parents=True, exist_ok=True)
            path = path / (f"rows.{shard.label}.jsonl" if shard else "rows.jsonl")
    check_writable(path, *read)
    if path.exists() and not path.is_file():
        raise InputError(f"-o {output}: is no file, expected one that can be read again")
    journal = Journal.read(path, schema)
    if journal.torn:
        say(f"{shown(path)}: {journal.torn} torn by a process that was stopped, measured again")
    return journal


def coming(
    work: Sequence[tuple[int, Piece]], of: int, schema: str, journal: Journal | None, *, quiet: bool
) -> Iterator[Row]:
    """See ``follow``: every row is on the disk before the next is begun."""
    steps = follow(work, of, schema, journal.rows if journal else [])
    while True:
        with guarded_stdout(), hushed(quiet):
            step = next(steps, None)
        if step is None:
            return
        row, is_new = step
        if journal and is_new:
            with delivering(f"-o {journal.path}"):
                journal.append(row)
        yield row


# How rows of sweep or track begin.
_ROWS = re.compile(rb'\{"schema": ?"gradscope/(sweep|track)/1"')


def are_rows(file: Path) -> bool:
    """Whether it begins as rows do; stdin, which is read once, is taken for a result."""
    if str(file) == "-" or not file.is_file():
        return False
    with file.open("rb") as stream:
        return bool(_ROWS.match(stream.read(64)))


def read_rows(path: Path) -> list[Row]:
    """The rows in a file, or of stdin, each once and in the order of the work; raises InputError for none."""
    if str(path) != "-" and not path.exists():
        raise InputError(f"{shown(path)}: No such file or directory, expected rows of sweep or track")
    journal = Journal.read(Path("/dev/stdin") if str(path) == "-" else path)
    if not journal.rows:
        raise InputError(
            f"{shown(path)}: no rows, expected those of gradscope sweep or track (-o, --format jsonl)"
        )
    return deduplicated(journal.rows)


# Rows that are named where something is said of many.
_NAMED = 3


def say_ended(ended: Mapping[str, Sequence[str]], count: int, schema: str) -> None:
    """What became of which of all rows, where it became of any: {"not measured": their names}."""
    for what, which in ended.items():
        if which:
            some = "; ".join(map(shown, which[:_NAMED])) + "; ..." * (len(which) > _NAMED)
            say(f"{what}: {len(which)} of {count} {KINDS[schema].many} ({some})")


def say_reasons(rows: Sequence[Row]) -> None:
    """Why some could not be measured, where no table says so."""
    reasons = dict.fromkeys(str(row["error"]) for row in rows if failed(row))
    for why in list(reasons)[:_NAMED]:
        say(why)


def say_kept(journal: Journal | None, count: int, schema: str) -> None:
    """What draws the rows that are kept, or what keeps them."""
    if journal is None:
        say("-o rows.jsonl keeps these rows, for gradscope plot and gradscope report")
        return
    path, many = shown(journal.path), KINDS[schema].many
    say(
        f"{path} keeps {count} {many if count != 1 else many.removesuffix('s')}: gradscope plot {path} -o "
        f"picture.svg draws them, gradscope report {path} -o page.html has their numbers too"
    )


def say_missing(places: Sequence[int], of: int, schema: str) -> None:
    """Which rows there should be besides."""
    numbers = listed([str(place + 1) for place in places], most=5)
    say(f"missing: {len(places)} of {of} {KINDS[schema].many} (number {numbers})")
