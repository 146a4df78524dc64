"""``gradscope plot``: a picture of a result, or of rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gradscope.cli.group import Command
from gradscope.cli.kept_rows import are_rows, read_rows
from gradscope.cli.streams import check_writable, say_written, write_result
from gradscope.errors import InputError, listed, shown
from gradscope.report.pictures.figures import FIGURES, FIGURES_OF_ROWS

_PICTURES = (*FIGURES, *FIGURES_OF_ROWS)
# Of a result, where none is named.
_FIRST = "lag"
_SUFFIXES = (".svg", ".png", ".pdf")


@click.command(cls=Command, short_help="Draw a picture of a result.")
@click.argument("result", type=click.Path(path_type=Path, allow_dash=True))
@click.argument(
    "picture",
    type=click.Choice(_PICTURES),
    required=False,
    metavar=f"[{'|'.join(_PICTURES)}]",  # else click's versions differ
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE: .svg, .png or .pdf.",
)
@click.option(
    "--size",
    default="column",
    show_default=True,
    metavar="SIZE",
    help="column (85 mm), wide (175 mm), slide (254 mm), page, or WIDTHxHEIGHT in millimetres.",
)
@click.option("--layer", metavar="NAME", help="Of several layers this one, by its name or as layer0.")
@click.option("--view", is_flag=True, help="Draw lag in the terminal, as large as that is, instead.")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colours of --view; every line has a letter too.",
)
def plot(
    result: Path,
    picture: str | None,
    output: Path | None,
    size: str,
    layer: str | None,
    view: bool,
    color: str,
) -> None:
    """Draw a picture of a result that --json has written, or of the rows of sweep or track.

    \b
    Examples:
      gradscope analyze --cell lstm --json > result.json
      gradscope plot result.json lag -o lag.svg
      gradscope plot result.json lag --view
      gradscope plot result.json share -o share.pdf --size slide
      gradscope plot result.json eigenvalues --layer layer0 > eigenvalues.svg
      gradscope analyze --cell gru --json | gradscope plot - spectrum -o gru.svg
      gradscope plot rows.jsonl phase -o phase.svg
      gradscope plot rows.jsonl training -o training.svg

    lag is the gain by lag of every chain, and of a loss; layers that of each layer, side by side; share who
    carries the gradient; spectrum the singular values of the whole product; heatmap in which unit and at
    which step the gradient is on its way back, of a loss or the one that survives best; gates their
    histograms; eigenvalues those of each recurrent matrix. Of the rows of sweep phase is the rate over the
    grid; of those of track training is gain and horizon against the step, and the gain by lag over training.
    Where none is named it is lag, and of rows that which there is.

    SVG and PDF keep text as text; PDF, and PNG of 300 dots per inch, need the extra plot.
    """
    from gradscope.report.pictures.figures import of_these, picture_of_rows
    from gradscope.report.pictures.figures import picture as draw
    from gradscope.report.result_file import read_result

    suffix, of_rows = output.suffix if output else ".svg", picture in FIGURES_OF_ROWS or are_rows(result)
    _check("rows" if of_rows else picture or _FIRST, output, view)
    check_writable(output, None if str(result) == "-" else result)
    if of_rows:
        if layer is not None:
            raise InputError("--layer is of a result, and these are rows: leave it out")
        rows = read_rows(result)
        made = picture_of_rows(rows, picture or of_these(rows), size).made(suffix)
        write_result(made, output)
        say_written(output, made)
        return
    told = read_result(result)
    if view:
        write_result(_view(told, layer, color), None)
        return
    made = draw(told, picture or _FIRST, size, layer).made(suffix)
    write_result(made, output)
    say_written(output, made)


def _check(picture: str, output: Path | None, view: bool) -> None:
    """Raise InputError for what cannot be meant."""
    if view and output is not None:
        raise InputError(f"--view is for the terminal: leave it out to write {shown(output)}, or -o")
    if view and picture != "lag":
        raise InputError(f"--view draws lag alone: leave it out, and give -o {picture}.svg")
    if output is not None and output.suffix.lower() not in _SUFFIXES:
        said = shown(output.with_suffix(".svg"))
        raise InputError(f"-o {shown(output)}: expected {listed(_SUFFIXES)}: write {said}, say")
    if output is None and not view and sys.stdout.isatty():
        more = ", or --view" if picture == "lag" else ""
        raise InputError(f"an SVG is no text to be read: give -o {picture}.svg{more}")


def _view(told: Mapping[str, Any], layer: str | None, color: str) -> str:
    """The gain by lag as text."""
    from gradscope.report.lag_view import render_lag_view
    from gradscope.report.pictures.parts import of_result, parts_of
    from gradscope.report.terminal import terminal_for

    with of_result():
        _, part = next(parts_of(told, layer))
        return render_lag_view(part, terminal_for(color, to_file=False))
