"""Sizes of pictures, and their colours on white and on black."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gradscope.errors import InputError, quoted

_PIXELS_PER_MM = 96 / 25.4
_POINT = 96 / 72
_FONT = 13.0
_SMALLEST, _LARGEST = 50, 1000
_GIVEN = re.compile(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)(?:mm)?")


@dataclass(frozen=True)
class Size:
    """width, height : in which it is drawn; font : how high a line of text is there.

    points : of a line, at most: no more than there are columns of pixels; hints : places across that say
        their numbers to a pointer that rests on them; zoom : pixels, 96 to the inch, that 1 of all these is:
        where letters are larger than a page's, as a slide's, so are lines, dots and dashes.
    """

    width: float
    height: float
    font: float
    points: int = 800
    hints: int = 0
    zoom: float = 1.0


def _mm(width: float, height: float, points: float) -> Size:
    zoom = max(1.0, points * _POINT / _FONT)
    unit = _PIXELS_PER_MM / zoom
    return Size(width * unit, height * unit, points * _POINT / zoom, zoom=zoom)


# One column of a paper, both, a slide; a page's own, and that of the layers on it.
SIZES = {
    "column": _mm(85, 64, 8),
    "wide": _mm(175, 80, 8),
    "slide": _mm(254, 143, 16),
    "page": Size(430.0, 290.0, _FONT, 160, 20),
    "small": Size(430.0, 290.0, _FONT, 80),
}
_NAMED = ("column", "wide", "slide", "page")


def size_of(text: str) -> Size:
    """The size of that name, or ``120x80``: millimetres. Raises InputError for any other."""
    if text in SIZES:
        return SIZES[text]
    given = _GIVEN.fullmatch(text)
    sides = [float(side) for side in given.groups()] if given else []
    if not sides or not all(_SMALLEST <= side <= _LARGEST for side in sides):
        raise InputError(
            f"size is {quoted(text)}, expected {', '.join(_NAMED)} or WIDTHxHEIGHT in millimetres, "
            f"{_SMALLEST} to {_LARGEST} each, such as 120x80"
        )
    return _mm(sides[0], sides[1], 8)


# Okabe and Ito 2008 (jfly.uni-koeln.de/color), told apart by all who see few colours, after the text's own;
# on black the lighter ones, or lightened. Beside the colour every line has a pattern.
_LIGHT = ("#1a1a1a", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6c00")
_DARK = ("#f2f2f2", "#56b4e9", "#ff8a3d", "#2fc49a", "#e39bc4", "#f0b429", "#9ad1f5", "#f0e442")
DASHES = (None, "7 3", "2 2", "9 3 2 3", "4 4", "1 3", "12 4", "6 2 1 2 1 2")
COLOURS = len(_LIGHT)
_INKS = {
    "paper": ("#ffffff", "#15181d"),
    "ink": ("#1a1a1a", "#f2f2f2"),
    "muted": ("#55595f", "#b6bcc6"),
    "grid": ("#dcdfe4", "#353b45"),
    "empty": ("#ffffff", "#d5d8de"),
}


def stroke(colour: int | str) -> dict[str, object]:
    """Attributes of a line in the n-th colour, or in an ink; a page may change it by its class."""
    name, value = _of(colour)
    return {"class_": f"l-{name}", "stroke": value, "fill": "none"}


def fill(colour: int | str) -> dict[str, object]:
    """The same of an area or a text."""
    name, value = _of(colour)
    return {"class_": f"f-{name}", "fill": value}


def _of(colour: int | str) -> tuple[str, str]:
    if isinstance(colour, str):
        return colour, _INKS[colour][0]
    return str(colour % COLOURS), _LIGHT[colour % COLOURS]


def dark_rules() -> str:
    """Rules of CSS that show every picture of a page on black."""
    colours = {str(number): value for number, value in enumerate(_DARK)}
    colours |= {name: dark for name, (_, dark) in _INKS.items()}
    return "".join(f".l-{name}{{stroke:{value}}}.f-{name}{{fill:{value}}}" for name, value in colours.items())
