"""In which unit and at which step the gradient is, of a loss or the one that survives best, as colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.report.pictures.axis import spread
from gradscope.report.pictures.colours import COLOURS, cividis, ground, image, in_palette
from gradscope.report.pictures.frame import Frame, margin, words
from gradscope.report.pictures.parts import floats, sentence
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import short
from gradscope.report.pictures.theme import Size
from gradscope.report.verdict import scientific

# Decades below the largest that are told apart; layers that are drawn.
_DECADES, _LAYERS = 20.0, 4
# Title, and what a colour is.
_OF_LOSS = ("Gradient of the loss by unit and step", "Largest |dL/d(pre-activation)| of each unit and step")
_RETURNING = (
    "The gradient that survives best, by unit and step",
    "What comes back to each unit and step of the gradient, of size 1, that is amplified most",
)


def draw_heatmap(part: Mapping[str, Any], size: Size) -> Picture:
    """A row for every unit, a column for every step, one scale of colours for all layers."""
    units = maps_of(part)
    maps = {name: np.array([floats(row) for row in one["log10"]]) for name, one in units.items()}
    known = np.concatenate([np.ravel(one) for one in maps.values()]) if maps else np.array([])
    known = known[np.isfinite(known)]
    if not len(known):
        raise InputError(
            "the result has no gradient by unit: it is of --only, of a bare chain or of layers that do not "
            "read each other (--layer draws one), or nothing of it is left"
        )
    lowest, high = spread(known, 1.0)
    low = max(lowest, high - _DECADES)
    font, parts = size.font, []
    tall = (size.height - 4.4 * font) / len(maps)
    left = margin([str(_last(units[name], "unit")) for name in maps], font) + font
    for row, (name, cells) in enumerate(maps.items()):
        top = row * tall + 1.5 * font
        frame = Frame(left, top, size.width - font, top + tall - 2.9 * font, font)
        parts += _map(name, cells, units[name], (low, high), frame)
    bar = Frame(left, size.height - 2.4 * font, size.width - font, size.height - 1.6 * font, font)
    parts += _scale(low, high, bar)
    title, what = _OF_LOSS if _of_loss(part) else _RETURNING
    said = [f"{what}: from {scientific(known.min())} to {scientific(known.max())}."]
    if low > lowest:
        said.append(f"What is more than {_DECADES:g} decades below the largest is as dark as can be.")
    if not all(np.isfinite(one).all() for one in maps.values()):
        said.append("What is empty is zero, lost in rounding or beyond float64.")
    return Picture(title, sentence(part), " ".join(said), size, tuple(parts))


def maps_of(part: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{layer, or "": {"step", "unit", "log10"}}, of those that are drawn."""
    units = _of_loss(part) or part.get("returning") or {}
    return dict([*units.items()][:_LAYERS])


def _of_loss(part: Mapping[str, Any]) -> Any:
    return (part.get("loss") or {}).get("units")


def _map(
    name: str, cells: Array, told: Mapping[str, Any], ends: tuple[float, float], frame: Frame
) -> list[str]:
    numbers, font = frame.bottom + 1.2 * frame.font, frame.font
    steps, units = told["step"], told["unit"]
    middle = (frame.left + frame.right) / 2
    return [
        words(
            f"{short(name)}: unit" if name else "unit",
            frame.left,
            frame.top - 0.4 * font,
            0.85 * font,
            "muted",
        ),
        ground(frame),
        image(in_palette(cells, *ends), cividis(), frame),
        words(str(int(units[0])), frame.left - 0.4 * font, frame.top + 0.9 * font, font, anchor="end"),
        words(str(_last(told, "unit")), frame.left - 0.4 * font, frame.bottom, font, anchor="end"),
        words(str(int(steps[0])), frame.left, numbers, font),
        words(str(_last(told, "step")), frame.right, numbers, font, anchor="end"),
        words("step", middle, numbers, 0.85 * font, "muted", anchor="middle"),
    ]


def _last(told: Mapping[str, Any], axis: str) -> int:
    """The last step or unit; results of before 0.1 was released tell where its column or row begins."""
    return int(told.get(f"{axis}s", told[axis][-1]))


def _scale(low: float, high: float, bar: Frame) -> list[str]:
    below = bar.bottom + 1.2 * bar.font
    lowest = scientific(low) if math.isfinite(low) else "0"
    return [
        image(np.arange(1, COLOURS + 1)[None], cividis(), bar),
        words(lowest, bar.left, below, bar.font),
        words(
            "gradient, log scale",
            (bar.left + bar.right) / 2,
            below,
            0.85 * bar.font,
            "muted",
            anchor="middle",
        ),
        words(scientific(high), bar.right, below, bar.font, anchor="end"),
    ]
