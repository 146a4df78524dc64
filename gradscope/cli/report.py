"""``gradscope report``: the one-file page of a result, or of a checkpoint."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gradscope.cli.analyze import MOST_USED, answer
from gradscope.cli.group import Command
from gradscope.cli.kept_rows import are_rows, read_rows
from gradscope.cli.options import Process, options, pick, pick_settings
from gradscope.cli.output import Output, say_matched
from gradscope.cli.streams import check_writable, say_written, write_result
from gradscope.errors import InputError, flag, shown
from gradscope.settings import Settings

# How the JSON of a result begins.
_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*\{\s*\"")
_OPTIONS = ("fail_on", "output", "quiet", "embed_data")


@click.command(
    cls=Command,
    most_used=(*(name for name in MOST_USED if name != "--json"), "--embed-data"),
    short_help="Write a result as one HTML page.",
)
@options(Settings)
@options(Output, _OPTIONS)
def report(**given: Any) -> int:
    """Write a result as one HTML page: verdict, pictures, exact numbers, where it came from.

    \b
    Examples:
      gradscope report result.json -o report.html
      gradscope report model.pt --inputs x.npy -o report.html
      gradscope report --cell lstm --steps 200 -o lstm.html
      gradscope analyze --json | gradscope report - -o report.html

    CHECKPOINT is a result that --json has written, - is stdin; or rows of sweep or track (-o rows.jsonl); or
    what gradscope analyze takes, which is then analysed with these options. The page runs no script and loads
    nothing: it can be mailed, printed and kept; --embed-data keeps the JSON in it.
    """
    output = replace(pick(Output, given), format="html")
    settings = pick_settings(given)
    if output.output is None and sys.stdout.isatty():
        raise InputError("a page of HTML is no text to be read: give -o report.html")
    file = settings.get("checkpoint")
    if file is None or not _is_result(file):
        return answer(settings, Process(), output)
    if more := _given():
        raise InputError(
            f"{flag(more[0])} is about an analysis, and {shown(file)} is the result of one: leave it out, or "
            "give the checkpoint"
        )
    return _of_result(file, output)


def _given() -> list[str]:
    """Options of the analysis that stand on the command line."""
    context = click.get_current_context()
    others = [name for name in context.params if name not in ("checkpoint", *_OPTIONS)]
    return [name for name in others if context.get_parameter_source(name) == ParameterSource.COMMANDLINE]


def _is_result(file: Path) -> bool:
    if str(file) == "-" or (file.exists() and not file.is_file()):  # checkpoints are not read from pipes
        return not file.is_dir()
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError:
        return file.suffix == ".json"
    # The length that a safetensors file begins with may look so, but has zeros.
    return bool(_JSON.match(head)) and b"\0" not in head


def _of_result(file: Path, output: Output) -> int:
    from gradscope.report.html_page import html_page
    from gradscope.report.pictures.parts import parts_of
    from gradscope.report.result_file import read_result
    from gradscope.report.rows_page import rows_page
    from gradscope.report.verdict import Matched

    read = () if str(file) == "-" else (file,)
    check_writable(output.output, *read)
    if are_rows(file):
        rows = read_rows(file)
        page = rows_page(rows, output.look(read).origin)
        write_result(page, output.output)
        say_written(output.output, page, quiet=output.quiet)
        return say_matched([])
    result = read_result(file)
    page = html_page(result, output.look(read).origin, embed=output.embed_data)
    write_result(page, output.output)
    say_written(output.output, page, quiet=output.quiet)
    levels = [(part["verdict"]["level"], name or None) for name, part in parts_of(result)]
    return say_matched([Matched(level, name) for level, name in levels if level in output.fail_on])
