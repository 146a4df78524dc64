"""Options that every command shares: thresholds, what comes out and how."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gradscope.errors import ExitCode

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis

# Opened by its name, a stdout that is a file would lose what others have written to it.
_STDOUT = (Path("-"), Path("/dev/stdout"))

Command = TypeVar("Command", bound=Callable[..., Any])


_VERDICT = (
    click.option(
        "--vanishing-below",
        type=float,
        default=1e-3,
        show_default=True,
        metavar="GAIN",
        help="Gain (sigma_1 of the product) below which the verdict is vanishing.",
    ),
    click.option(
        "--exploding-above",
        type=float,
        default=1e3,
        show_default=True,
        metavar="GAIN",
        help="Gain, at the last lag or on the way, above which it is exploding.",
    ),
    click.option(
        "--fail-on",
        multiple=True,
        type=click.Choice(["vanishing", "stable", "exploding", "undecided"]),
        help="Exit 1 on this verdict (repeatable).",
    ),
)
_PAGE = (
    click.option(
        "--format",
        "output_format",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="A table for people or JSON for programs.",
    ),
    click.option("--json", "output_format", flag_value="json", help="The same as --format json."),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path, allow_dash=True),
        callback=lambda _, __, path: None if path in _STDOUT else path,
        metavar="FILE",
        help="Write to FILE; - is stdout.",
    ),
    click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Colour in the table; NO_COLOR and FORCE_COLOR are heeded.",
    ),
)
_MORE = (
    click.option(
        "--lags",
        type=click.Choice(["auto", "all"]),
        default="auto",
        show_default=True,
        help="Lags in the JSON profile: about a thousand at most, or every one.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="The verdict alone, and nothing on stderr."),
)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _bytes(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)i?B?", value or "0", re.IGNORECASE)
    if not match:
        raise click.BadParameter(f"{value!r} is no size, expected bytes or such as 500M or 2G")
    return None if value is None else int(match[1]) * _UNITS[match[2].upper()]


max_size_option = click.option(
    "--max-size",
    callback=_bytes,
    metavar="SIZE",
    help="Most that the file may unpack to, such as 2G (default: a small multiple of its size).",
)


@dataclass(frozen=True)
class Output:
    """The shared options, as the commands pass them on."""

    vanishing_below: float
    exploding_above: float
    fail_on: tuple[str, ...]
    output_format: str
    output: Path | None
    lags: str
    color: str
    quiet: bool


def output_options(command: Command) -> Command:
    """Decorate a click command with every shared option."""
    return decorated(command, (section("Verdict", *_VERDICT), section("Output", *_PAGE, *_MORE)))


def page_options(command: Command) -> Command:
    """Decorate a click command with the options of what comes out and where."""
    return decorated(command, _PAGE)


def section(title: str, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """The options as one decorator, under a heading of their own in the help."""

    def decorate(command: Command) -> Command:
        already = len(getattr(command, "__click_params__", ()))
        command = decorated(command, options)
        for option in command.__click_params__[already:]:  # type: ignore[attr-defined]
            option.section = title
        return command

    return decorate


def decorated(command: Command, decorators: Sequence[Callable[[Command], Command]]) -> Command:
    """The command with these decorators, the first of them outermost."""
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def take_output(options: dict[str, Any]) -> Output:
    """Remove the shared options from ``options`` and return them as one object."""
    return Output(**{field.name: options.pop(field.name) for field in fields(Output)})


def finish(analysis: Analysis, output: Output) -> int:
    """Render, write, and say how to exit."""
    from gradscope.cli.streams import write_result

    write_result(_render(analysis, output), output.output)
    return ExitCode.FINDING if analysis.all_levels.intersection(output.fail_on) else ExitCode.OK


def _render(analysis: Analysis, output: Output) -> str:
    if output.output_format == "json":
        from gradscope.report.json import render_json

        return render_json(analysis, all_lags=output.lags == "all")
    from gradscope.report.table import render_table
    from gradscope.report.terminal import terminal_for

    terminal = terminal_for(output.color, to_file=output.output is not None)
    return render_table(analysis, terminal, verdict_only=output.quiet)


def find_modules_here() -> None:
    """``--cell package.module:factory`` looks in the current folder too, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
