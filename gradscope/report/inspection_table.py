"""An Inspection as a table to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from gradscope.errors import listed, shown
from gradscope.report.page import assumed, bullet, fitted, magnitude, not_applied, page, section
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look

if TYPE_CHECKING:
    from gradscope.checkpoints import Found
    from gradscope.report.inspection import Inspection

# Layers in a table: nobody reads more, and a stranger's file may hold a hundred thousand.
_MOST = 64


def render_contents(inspection: Inspection, look: Look) -> str:
    """The whole table as text, with ANSI codes if the terminal has colours."""
    return page(_parts(inspection, look.terminal), look.terminal)


# What a narrow terminal can do without, first to go first.
_DISPENSABLE = ("dtype", "activation", "direction", "input", "hidden", "reads", "matrix")
_LAYERS = ("layer", "cell", "hidden", "input", "direction", "reads", "dtype", "activation")
_NORMS = ("layer", "matrix", "spectral norm", "spectral radius")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], terminal: Terminal) -> RenderableType:
    columns = {name: list(cells) for name, cells in zip(headings, zip(*rows, strict=True), strict=True)}
    return fitted(columns, terminal, folds="layer", dispensable=_DISPENSABLE, styles={})


def _parts(inspection: Inspection, terminal: Terminal) -> Iterable[RenderableType]:
    count = f"{len(inspection.contents.layers)} recurrent layer" + "s" * (len(inspection.contents.layers) > 1)
    layers = inspection.contents.layers[:_MOST]
    yield Text.assemble((count.upper(), "bold"), f" in {shown(inspection.source)}")
    for found in layers:
        said = (
            found.open,
            found.problem,
            str(found.mask or ""),
            *map(not_applied, found.not_applied),
            *map(assumed, found.assumed),
        )
        for sentence in filter(None, said):
            yield bullet(f"{shown(found.name)}: {sentence}" if found.name else sentence)
    summary = []
    for found in layers:
        sizes = [str(size) for size in found.sizes or ("-", "-")]
        known = found.activations + "?" * bool(found.question and found.activations)
        row = (found.name, found.label, *sizes, found.direction, _reads(found), found.dtype, known)
        summary.append([shown(cell) or "-" for cell in row])
    yield section("Layers", _table(_LAYERS, summary, terminal))
    if more := len(inspection.contents.layers) - len(layers):
        yield Text(f"\nand {more} more, which --json lists", style="dim")
    norms = []
    for found, matrices in zip(layers, inspection.matrices[:_MOST], strict=True):
        for name, matrix in matrices.items():
            told = magnitude(matrix["spectral_norm"]), magnitude(matrix["spectral_radius"])
            norms.append([shown(found.name) or "-", name, *told])
    if norms:
        yield section("Recurrent matrices", _table(_NORMS, norms, terminal))
    if others := inspection.contents.others:
        yield Text(f"\nAlso in the file: {len(others)} other tensors: {listed(list(others), 4)}", style="dim")


def _reads(found: Found) -> str:
    """What a layer's inputs are: those of the model, other layers' outputs, or something in between."""
    if found.below is None:
        return f"{found.reads}?" if found.reads else "?"
    return ", ".join(found.below) or found.reads or "inputs"
