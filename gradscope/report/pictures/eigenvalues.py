"""The eigenvalues of every recurrent matrix, in the complex plane, with the unit circle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.report.pictures.frame import Frame, words
from gradscope.report.pictures.panels import MOST_PANELS, called, heading, panels
from gradscope.report.pictures.parts import floats
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, number
from gradscope.report.pictures.theme import Size, stroke

# Matrices of which none reaches so many times as far as another are drawn on one scale.
_ALIKE = 3.0


def draw_eigenvalues(parts: Mapping[str, Mapping[str, Any]], size: Size) -> Picture:
    """parts : the layers whose matrices are drawn, {name or "": part}."""
    matrices = [
        (layer, matrix)
        for layer, part in parts.items()
        for matrix in part["matrices"]
        if matrix.get("eigenvalues")
    ][:MOST_PANELS]
    if not matrices:
        raise InputError(
            "the result has no eigenvalues: it is of --only or gradscope chain, or its matrices are not "
            "square or larger than 256 x 256"
        )
    size, frames = panels([layer for layer, _ in matrices], size, 1.0)
    reaches = [_reach(matrix) for _, matrix in matrices]
    alike = max(reaches) <= _ALIKE * min(reaches)
    drawn = []
    for (layer, matrix), reach, frame in zip(matrices, reaches, frames, strict=True):
        drawn += [
            *heading(layer, matrix["name"], "", _radius(matrix), frame),
            *_plane(matrix, max(reaches) if alike else reach, frame),
        ]
    said = (
        "Eigenvalues in the complex plane with the unit circle; those beyond it in another colour. The marks "
        "below are the singular values, from 0 below the centre, on the same scale"
        f"{'' if alike else ', which each matrix has of its own'}."
    )
    return Picture("Eigenvalues of the recurrent matrices", _said(matrices), said, size, tuple(drawn))


def _finite(pairs: Any) -> Array:
    found = np.array(pairs, np.float64).reshape(-1, 2)
    return found[np.isfinite(found).all(axis=1)]


def _sizes(matrix: Mapping[str, Any]) -> Array:
    """Its singular values."""
    found = floats(matrix["singular_values"])
    return found[np.isfinite(found)]


def _reach(matrix: Mapping[str, Any]) -> float:
    """How far axes go that have room for the circle and for all values."""
    far = (_finite(matrix["eigenvalues"]), _sizes(matrix))
    return 1.1 * max(1.0, *(float(np.abs(one).max(initial=0.0)) for one in far))


def _plane(matrix: Mapping[str, Any], reach: float, frame: Frame) -> list[str]:
    """One scale for all axes, which go to ``reach``."""
    values, sizes = _finite(matrix["eigenvalues"]), _sizes(matrix)
    half = min(frame.right - frame.left, frame.bottom - frame.top) / 2
    centre = ((frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2)

    def at(real: float, imaginary: float) -> tuple[float, float]:
        return centre[0] + half * real / reach, centre[1] - half * imaginary / reach

    (x, y), unit = centre, half / reach
    parts = [
        element("line", x1=x - half, y1=y, x2=x + half, y2=y, **stroke("grid")),
        element("line", x1=x, y1=y - half, x2=x, y2=y + half, **stroke("grid")),
        element(
            "circle", element("title", "unit circle"), cx=x, cy=y, r=unit, stroke_width=1.2, **stroke("ink")
        ),
    ]
    dot = max(2.4, 0.32 * frame.font)
    beyond = np.hypot(*values.T) > 1
    for colour, some in ((1, values[~beyond]), (2, values[beyond])):
        # A dot is a short line with round ends: a tenth of the text that circles take.
        dots = _alike("h.1", (0.1, 0.0), np.array([at(*value) for value in some.tolist()]).reshape(-1, 2))
        style = {"stroke_width": dot, "stroke_linecap": "round"} | stroke(colour)
        parts += [element("path", d=dots, **style)] if dots else []
    return [*parts, *_marks(x, sizes / reach * half + x, y + half, frame.font)]


def _alike(piece: str, end: tuple[float, float], at: Array) -> str:
    """A path of a piece at every place; each but the first is told from where the one before it ended.

    end : of a piece, from where it begins; at : (k, 2).
    """
    tenths = at.round(1)
    moves = np.concatenate([tenths[:1], np.diff(tenths, axis=0) - end])
    return "".join(
        f"{'m' if place else 'M'}{number(x)},{number(y)}{piece}"
        for place, (x, y) in enumerate(moves.tolist())
    )


def _marks(zero: float, at: Array, bottom: float, font: float) -> list[str]:
    """Short lines that rise from the bottom, of those that fall on one pixel one, right of what they are."""
    places = np.unique(at.round())
    if not len(places):
        return []
    tall = round(0.6 * font, 1)
    marks = _alike(
        f"v{number(-tall)}", (0.0, -tall), np.stack([places, np.full(len(places), bottom)], axis=1)
    )
    title = element("title", "singular values")
    return [
        element("path", title, d=marks, stroke_width=0.6, **stroke("muted")),
        words("sigma_i", zero - 0.4 * font, bottom, 0.75 * font, "muted", anchor="end"),
    ]


def _radius(matrix: Mapping[str, Any]) -> str:
    radius = matrix["spectral_radius"]
    return "" if radius is None else f"radius {_figures(radius)}"


def _figures(value: float) -> str:
    """Three of them, zeros at the end too: beside one another all are as exact."""
    return f"{value:#.3g}".rstrip(".")


def _numbers(matrix: Mapping[str, Any]) -> str:
    radius, norm = (matrix[f"spectral_{name}"] for name in ("radius", "norm"))
    return ", ".join(
        f"{name} {_figures(value)}"
        for name, value in (("radius", radius), ("norm", norm))
        if value is not None
    )


def _said(matrices: list[tuple[str, Any]]) -> str:
    each = [f"{called(layer, matrix['name'])} {_numbers(matrix)}" for layer, matrix in matrices]
    return f"{'; '.join(each)}."
