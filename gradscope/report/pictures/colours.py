"""Numbers as colours: a palette from dark to bright, and a picture of a pixel for every cell."""

from __future__ import annotations

import numpy as np

from gradscope.custom_types import Array
from gradscope.report.pictures.frame import Frame
from gradscope.report.pictures.png import data_uri
from gradscope.report.pictures.svg import element
from gradscope.report.pictures.theme import fill, stroke

# cividis (Nunez, Anderton, Renslow 2018), as bright as it is far along for all who see few colours.
_CIVIDIS = ((0, 34, 78), (67, 78, 108), (125, 124, 120), (188, 175, 111), (254, 232, 56))
COLOURS = 64


def cividis() -> Array:
    """White, which is not seen, and the colours from dark to bright."""
    return shades(_CIVIDIS, COLOURS)


def shades(anchors: tuple[tuple[int, int, int], ...], count: int) -> Array:
    """White, which stands for what is not known, and so many colours along the anchors."""
    at = np.linspace(0, len(anchors) - 1, count)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in np.array(anchors).T]
    return np.vstack([[255, 255, 255], np.stack(channels, axis=1).round()]).astype(np.uint8)


def in_palette(cells: Array, low: float, high: float) -> Array:
    """In the palette of ``COLOURS``: 1 what is lowest or less, 0 what is not known."""
    part = np.clip((np.nan_to_num(cells, nan=low) - low) / (high - low), 0, 1)
    return np.where(np.isfinite(cells), 1 + (part * (COLOURS - 1)).round(), 0).astype(np.uint8)


def image(places: Array, palette: Array, frame: Frame) -> str:
    """The cells (h, w), the first row above, in this box."""
    return element(
        "image",
        href=data_uri(places, palette),
        x=frame.left,
        y=frame.top,
        width=frame.right - frame.left,
        height=frame.bottom - frame.top,
        preserveAspectRatio="none",
        image_rendering="pixelated",
    )


def ground(frame: Frame) -> str:
    """What shows where cells are empty: a colour that is not on the scale."""
    return element(
        "rect",
        x=frame.left,
        y=frame.top,
        width=frame.right - frame.left,
        height=frame.bottom - frame.top,
        **stroke("grid")
        | fill("empty")
        | {"class_": f"{stroke('grid')['class_']} {fill('empty')['class_']}"},
    )
