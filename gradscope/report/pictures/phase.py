"""A phase diagram: what a grid changes, where a rate is zero, and where theory expects that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.report.phase import (
    MEASURED,
    MOST_PHASES,
    THEORY,
    Phase,
    Point,
    curves_of,
    phases,
    places_along,
    zero_lines,
)
from gradscope.report.pictures.axis import spread
from gradscope.report.pictures.colours import COLOURS, cividis, image, in_palette, shades
from gradscope.report.pictures.frame import Frame, Legend, line, margin, stretches, words
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, escaped, short
from gradscope.report.pictures.theme import Size, stroke

# From blue, what shrinks, over white, a rate of zero, to orange: Okabe and Ito's, told apart by all.
_ANCHORS = ((0, 68, 119), (86, 160, 211), (255, 255, 255), (236, 150, 62), (150, 62, 0))
_SHADES = 127  # an odd number: one of them is zero's
_DASHED = {MEASURED: None, THEORY: "5 3"}
# In letters: the width and the height that a diagram has at least; what stands above, below it, below all.
_NARROWEST, _LOWEST = 26, 8.0
_ABOVE, _BELOW, _KEY = 1.7, 2.7, 4.6


def draw_phase(rows: Sequence[Mapping[str, Any]], size: Size) -> Picture:
    """A diagram for every combination of the other options; of one axis alone a line."""
    found = phases(rows)
    if not found:
        raise InputError(
            "the grid has no axis of several numbers to be drawn along: give one such as gain=0.5:2:16"
        )
    if len(found) > MOST_PHASES:
        raise InputError(
            f"the grid has {len(found)} diagrams ({found[0].title}, ...), expected at most {MOST_PHASES}: "
            "sweep fewer of them"
        )
    colours = _colours(found)
    parts: list[str] = []
    if found[0].y:
        size = _tall_enough(len(found), size)
        for phase, frame in zip(found, _frames(found, size), strict=True):
            parts += _map(phase, colours, frame)
        parts += _key(found, colours, size)
    else:
        parts += _lines(found, size)
    subjects = dict.fromkeys(str(row["subject"]) for row in rows if row.get("subject"))
    before = f"{next(iter(subjects))}." if len(subjects) == 1 else ""
    title = "Rate over the grid" if found[0].quantity.is_rate else "Training over the grid"
    return Picture(title, before, _said(found), size, tuple(parts))


def _said(found: Sequence[Phase]) -> str:
    """What there is to see, for those who do not."""
    levels = np.concatenate([phase.level.ravel() for phase in found])
    counts = {name: int((levels == name).sum()) for name in dict.fromkeys(levels) if name}
    failed = int((levels == "").sum())
    told = [f"{count} {name}" for name, count in counts.items()] + [f"{failed} not measured"] * bool(failed)
    first = found[0]
    over = f"{first.x} and {first.y}" if first.y else first.x
    lines = _said_of_lines(found) if first.quantity.is_rate else ""
    of = f"; medians of {first.of} seeds" if first.of > 1 else ""
    what = first.quantity.words.capitalize()
    points = f"{len(levels)} point{'s' * (len(levels) != 1)}: {', '.join(told)}"
    return f"{what}, over {over}, {points}{lines}{of}."


def _said_of_lines(found: Sequence[Phase]) -> str:
    if found[0].y:
        drawn = _lines_drawn(found)
        where = "; lines: where it is zero, "
    else:
        drawn = [MEASURED, *[THEORY] * any(np.isfinite(phase.theory).any() for phase in found)]
        where = "; lines: "
    if not drawn:
        return "; nowhere is it zero"
    return where + " and ".join(
        {MEASURED: "measured", THEORY: "by mean-field theory"}[name] for name in drawn
    )


@dataclass(frozen=True)
class _Colours:
    """The palette of a map and the values at its ends; of a rate zero is white, in the middle."""

    low: float
    high: float
    signed: bool

    @property
    def palette(self) -> Array:
        """The first of it is what is not known."""
        return shades(_ANCHORS, _SHADES) if self.signed else cividis()

    def of(self, values: Array) -> Array:
        """The places of these values in it; of a rate each side of zero as far as it goes."""
        if not self.signed:
            return in_palette(values, self.low, self.high)
        with np.errstate(invalid="ignore"):
            sides = np.where(values < 0, -np.clip(values / self.low, 0, 1), np.clip(values / self.high, 0, 1))
        middle = _SHADES // 2
        placed = np.nan_to_num(np.round(middle * sides), nan=0.0) + middle + 1
        return np.where(np.isnan(values), 0, placed).astype(np.uint8)

    @property
    def key(self) -> tuple[Array, list[tuple[float, str]]]:
        """All of it side by side, and what stands below, each with its part of the way."""
        if not self.signed:
            return np.linspace(1, COLOURS, COLOURS).round()[None].astype(np.uint8), [
                (0.0, f"{self.low:.3g}"),
                (1.0, f"{self.high:.3g}"),
            ]
        below = [(0.0, f"{self.low:.2g}"), (0.5, "0"), (1.0, f"{self.high:+.2g}")]
        return np.arange(1, _SHADES + 1)[None], below


def _colours(found: Sequence[Phase]) -> _Colours:
    """Of a rate at least a little on both sides of zero; of a part of 1 from none to all, or more."""
    values = np.concatenate([phase.value.ravel() for phase in found])
    known = values[np.isfinite(values)]
    if not found[0].quantity.is_rate:
        return _Colours(0.0, max(1.0, float(known.max(initial=1.0))), signed=False)
    low, high = (float(known.min()), float(known.max())) if known.size else (-1.0, 1.0)
    least = 0.02 * max(-low, high, 1e-6)
    return _Colours(min(low, -least), max(high, least), signed=True)


# -- two axes ----------------------------------------------------------------------------------------


def _across(count: int, size: Size) -> int:
    """How many diagrams stand side by side."""
    return max(1, min(count, int(size.width / (_NARROWEST * size.font))))


def _tall_enough(count: int, size: Size) -> Size:
    """The size, or a higher one in which none of so many diagrams is flat."""
    down = math.ceil(count / _across(count, size))
    least = (down * (_LOWEST + _ABOVE + _BELOW) + _KEY) * size.font
    return replace(size, height=max(size.height, least))


def _frames(found: Sequence[Phase], size: Size) -> list[Frame]:
    """Boxes side by side, in rows where they do not fit; above the key."""
    font, count = size.font, len(found)
    across = _across(count, size)
    down = math.ceil(count / across)
    wide, tall = size.width / across, (size.height - _KEY * font) / down
    left = margin([_label(y) for y in found[0].ys], font) + 0.4 * font
    frames = []
    for number in range(count):
        x, y = number % across * wide, number // across * tall
        box = (x + left, y + _ABOVE * font, x + wide - font, y + tall - _BELOW * font)
        frames.append(Frame(*box, font))
    return frames


def _label(value: float) -> str:
    return f"{value:.4g}"


def _map(phase: Phase, colours: _Colours, frame: Frame) -> list[str]:
    font, (high, wide) = frame.font, phase.value.shape
    title = f"{short(phase.y)}{f' ({short(phase.title, 40)})' if phase.title else ''}"
    parts = [
        words(title, frame.left, frame.top - 0.5 * font, font, "muted"),
        image(colours.of(phase.value)[::-1], colours.palette, frame),
        *_not_measured(phase, frame),
    ]
    for name, lines in zero_lines(phase).items():
        drawn = (_line(points, frame, wide, high, _DASHED[name]) for points in lines)
        parts.append(element("g", element("title", f"{name}: rate 0"), *drawn))
    for at, text in _labels(phase.xs, (frame.right - frame.left) / wide, font):
        x = frame.left + (at + 0.5) * (frame.right - frame.left) / wide
        parts.append(words(text, x, frame.bottom + 1.15 * font, font, anchor="middle"))
    step = (frame.bottom - frame.top) / high
    every = max(1, math.ceil(1.2 * font / step))
    for at in range(0, high, every):
        y = frame.bottom - (at + 0.5) * step + 0.35 * font
        parts.append(words(_label(phase.ys[at]), frame.left - 0.4 * font, y, font, anchor="end"))
    middle = (frame.left + frame.right) / 2
    parts.append(words(short(phase.x), middle, frame.bottom + 2.3 * font, font, "muted", anchor="middle"))
    return parts


def _labels(values: Sequence[float], apart: float, font: float) -> list[tuple[int, str]]:
    """As many as there is room for, each with its place."""
    widest = max(len(_label(value)) for value in values)
    every = max(1, math.ceil((0.6 * widest + 0.8) * font / apart))
    return [(at, _label(values[at])) for at in range(0, len(values), every)]


def _lines_drawn(found: Sequence[Phase]) -> list[str]:
    """The kinds of lines that are in the diagrams."""
    drawn = {name for phase in found for name in zero_lines(phase)}
    return [name for name in _DASHED if name in drawn]


def _line(points: Sequence[Point], frame: Frame, wide: int, high: int, dash: str | None) -> str:
    """A line through places of the grid."""
    across, up = (frame.right - frame.left) / wide, (frame.bottom - frame.top) / high
    at = " ".join(
        f"{frame.left + (x + 0.5) * across:.1f},{frame.bottom - (y + 0.5) * up:.1f}" for x, y in points
    )
    return _edged(at, dash)


def _edged(points: str, dash: str | None) -> str:
    """A black line with a white edge, which is seen on every colour of the map and on any paper."""
    black = {"fill": "none", "stroke": "#000000", "stroke_width": 1.8, "stroke_dasharray": dash}
    edge = {"fill": "none", "stroke": "#ffffff", "stroke_width": 3.6, "stroke_opacity": "0.7"}
    return element("polyline", points=points, **edge) + element("polyline", points=points, **black)


def _not_measured(phase: Phase, frame: Frame) -> list[str]:
    """A cross where a point could not be measured."""
    high, wide = phase.value.shape
    across, up = (frame.right - frame.left) / wide, (frame.bottom - frame.top) / high
    arm = 0.25 * min(across, up)
    parts = []
    for i, j in zip(*np.nonzero(phase.failed), strict=True):
        x, y = frame.left + (j + 0.5) * across, frame.bottom - (i + 0.5) * up
        for sign in (1, -1):
            ends = {"x1": x - arm, "x2": x + arm, "y1": y - sign * arm, "y2": y + sign * arm}
            parts.append(element("line", **ends, **stroke("muted")))
    return [element("g", element("title", "not measured"), *parts)] if parts else []


def _key(found: Sequence[Phase], colours: _Colours, size: Size) -> list[str]:
    """What the colours are, and what the lines."""
    font, top = size.font, size.height - 4.2 * size.font
    bar = Frame(font, top, 0.5 * size.width, top + 0.8 * font, font)
    below = bar.bottom + 1.2 * font
    places, labels = colours.key
    parts = [image(places, colours.palette, bar)]
    for part, label in labels:
        x = bar.left + part * (bar.right - bar.left)
        parts.append(words(label, x, below, font, anchor={0.0: None, 1.0: "end"}.get(part, "middle")))
    parts.append(words(found[0].quantity.words, bar.left, below + 1.3 * font, font, "muted"))
    for row, name in enumerate(_lines_drawn(found)):
        x, y = 0.5 * size.width + 1.5 * font, top + (0.9 + 1.5 * row) * font
        at = f"{x:.1f},{y - 0.3 * font:.1f} {x + 2.4 * font:.1f},{y - 0.3 * font:.1f}"
        paper = {"y": y - 0.75 * font, "width": 2.6 * font, "height": 0.9 * font, "fill": "#ffffff"}
        parts.append(element("rect", x=x - 0.1 * font, **paper))  # as on the map, on black too
        parts.append(_edged(at, _DASHED[name]))
        parts.append(words(f"{name}: rate 0", x + 3 * font, y, font))
    return parts


# -- one axis ----------------------------------------------------------------------------------------


def _lines(found: Sequence[Phase], size: Size) -> list[str]:
    """What is shown along the axis, a line for each of the others, and theory's."""
    font, xs, places = size.font, found[0].xs, places_along(found[0].xs)
    drawn = curves_of(found)
    if not drawn:
        raise InputError("no point of the grid has a number: no gradient gets through, or none was measured")
    known = np.concatenate([values[np.isfinite(values)] for _, values in drawn])
    legend = Legend([(name, k) for k, (name, _) in enumerate(drawn)], size.width - 2 * font, font)
    low, high = spread([*known, 0.0], 1e-3)
    frame = Frame(
        margin([f"{low:.3g}", f"{high:.3g}"], font) + 0.6 * font,
        2.2 * font,
        size.width - font,
        size.height - 3.4 * font - legend.height,
        font,
    )
    x, y = frame.axes(spread(places, 1e-9), (low, high))
    some = _labels(xs, (frame.right - frame.left) / len(xs), font) if places[0] != xs[0] else None
    labels = None if some is None else [(float(places[at]), label) for at, label in some]
    parts = [frame.drawn(x, y, (short(found[0].x), found[0].quantity.words), labels=labels)]
    zero = y.at(0.0)
    parts.append(element("line", x1=frame.left, x2=frame.right, y1=zero, y2=zero, **stroke("muted")))
    for k, (name, values) in enumerate(drawn):
        runs = stretches(places, np.where(np.isinf(values), np.nan, values), low, high)
        pieces = [line([(x.at(u), y.at(v)) for u, v in run], k) for run in runs]
        parts.append(element("g", element("title", escaped(name)), *pieces))
    return [*parts, legend.drawn(font, frame.bottom + 3.1 * font)]
