"""``gradscope plot``: a picture of a result."""

from __future__ import annotations

from pathlib import Path

import click

from gradscope.cli.group import Command
from gradscope.errors import InputError, shown
from gradscope.report.pictures.figures import FIGURES

_SUFFIX = ".svg"


@click.command(cls=Command, short_help="Draw a picture of a result, as SVG.")
@click.argument("result", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("picture", type=click.Choice([*FIGURES]))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE.svg.")
@click.option(
    "--size",
    default="column",
    show_default=True,
    metavar="SIZE",
    help="column (85 mm), wide (175 mm), slide (254 mm), page, or WIDTHxHEIGHT in millimetres.",
)
@click.option("--layer", metavar="NAME", help="Of several layers this one, by its name or as layer0.")
def plot(result: Path, picture: str, output: Path | None, size: str, layer: str | None) -> None:
    """Draw a picture of a result that --json has written.

    \b
    Examples:
      gradscope analyze --cell lstm --json > result.json
      gradscope plot result.json lag -o lag.svg
      gradscope plot result.json share -o share.svg --size slide
      gradscope plot result.json eigenvalues --layer layer0 > eigenvalues.svg
      gradscope analyze --cell gru --json | gradscope plot - spectrum -o gru.svg

    lag is the gain by lag of every chain, and of a loss; share who carries the gradient; spectrum the
    singular values of the whole product; heatmap the gradient of a loss by unit and step; gates their
    histograms; eigenvalues those of each recurrent matrix.

    Text stays text, in papers too: rsvg-convert -f pdf lag.svg -o lag.pdf, or inkscape, makes PDF or PNG
    of it.
    """
    from gradscope.cli.streams import check_writable, write_result
    from gradscope.report.pictures.figures import picture as draw
    from gradscope.report.result_file import read_result

    if output is not None and output.suffix.lower() != _SUFFIX:
        kind = output.suffix.lstrip(".") or "pdf"
        raise InputError(
            f"-o {shown(output)}: pictures are SVG: write {shown(output.with_suffix(_SUFFIX))}; "
            f"rsvg-convert -f {shown(kind)} or inkscape then makes {shown(output.name)} of it"
        )
    check_writable(output, None if str(result) == "-" else result)
    write_result(str(draw(read_result(result), picture, size, layer)), output)
