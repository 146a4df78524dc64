"""Small pictures side by side, one for every gate or matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gradscope.report.pictures.frame import Frame, width_of, words
from gradscope.report.pictures.svg import both_ends, short
from gradscope.report.pictures.theme import Size

# A panel's heading, a layer's name above it, the numbers of its axis and the gap beside it, in lines; the
# most that one picture has.
_HEADING, _LAYER, _BELOW = 2.8, 1.2, 1.8
_GAP = 2.0
MOST_PANELS = 24


def panels(
    layers: Sequence[str], size: Size, aspect: float, left: float = 0.0
) -> tuple[Size, Iterator[Frame]]:
    """The box of each, in rows; and how large the picture is, which grows downwards where they need it.

    layers : of each the name of its layer, or ""; aspect : width over height of a box; left : pixels beside
        the first of every row, for the numbers of an axis that they have in common.
    """
    font, least, count = size.font, 9 * size.font, len(layers)
    heading = _HEADING + _LAYER * any(layers)
    columns = max(1, min(count, int((size.width - left) // (least + font))))
    columns = math.ceil(count / math.ceil(count / columns))
    gap = _GAP * font
    width = (size.width - left - (columns - 1) * gap - 2 * font) / columns
    # Few of them are no larger than leaves the picture as high as was asked for.
    height = (
        min(width / aspect, size.height - (heading + _BELOW) * font) if count <= columns else width / aspect
    )
    tall = height + (heading + _BELOW) * font
    rows = math.ceil(count / columns)

    def frames() -> Iterator[Frame]:
        for k in range(count):
            start = font + left + (k % columns) * (width + gap)
            top = (k // columns) * tall + heading * font
            yield Frame(start, top, start + width, top + height, font)

    return replace(size, height=rows * tall), frames()


def heading(layer: str, name: str, beside: str, below: str, frame: Frame) -> list[str]:
    """A name, of which the beginning where it is too wide, with what stands beside it; and a line below.

    layer : stands above it, if there is one.
    """
    small = 0.85 * frame.font
    room = int((frame.right - frame.left) / width_of("m", small))
    above = words(both_ends(layer, room), frame.left, frame.top - 2.7 * frame.font, small, "muted")
    title = short(name, room - len(beside)) + beside
    return [
        *([above] if layer else []),
        words(title, frame.left, frame.top - 1.5 * frame.font, small, bold=True),
        words(below, frame.left, frame.top - 0.4 * frame.font, small, "muted"),
    ]


def called(layer: str, name: object) -> str:
    """What a panel shows, in a sentence."""
    return f"{short(layer)} {short(name)}".strip()
