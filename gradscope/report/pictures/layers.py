"""The layers of a stack side by side: the gain of each by lag, all on one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, counted, shown
from gradscope.report.gain_words import gain_in
from gradscope.report.pictures.axis import Axis, spread
from gradscope.report.pictures.frame import (
    Frame,
    line,
    margin_of_decades,
    power_of_ten,
    stretches,
    thinned,
    words,
)
from gradscope.report.pictures.lag import Line, lines_of, thresholds_of
from gradscope.report.pictures.panels import MOST_PANELS, called, heading, panels
from gradscope.report.pictures.parts import sentence
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, escaped
from gradscope.report.pictures.theme import Size, stroke

# Colours of a layer's line and of that of all of them together; decades that the axis has at least.
_OWN, _TOGETHER = 0, 1
_LEAST = 2.0
# Points of a line, at least; of few layers as many as their panels are wide, of that of one picture.
_POINTS = 40


def draw_layers(parts: Mapping[str, Mapping[str, Any]], size: Size) -> Picture:
    """parts : the layers, {name: part}, and under "" all of them together, if that is drawn beside each."""
    layers = [(name, part) for name, part in parts.items() if name][:MOST_PANELS]
    if not layers:
        raise InputError("the result is of one layer: lag draws its gain")
    whole = parts.get("")
    own = [lines_of(part)[0] for _, part in layers]
    beside = [lines_of(whole)[0]] if whole else []
    low, high = _heights(layers[0][1], [*own, *beside])
    left = margin_of_decades(low, high, size.font)
    whole_size, frames = panels([name for name, _ in layers], size, 1.5, left)
    drawn: list[str] = []
    first, most = math.inf, max(_POINTS, size.points // math.ceil(len(layers) ** 0.5 + 1))
    for place, ((name, part), line_, frame) in enumerate(zip(layers, own, frames, strict=True)):
        first = min(first, frame.left)
        x, y = frame.axes(spread([1.0, float(line_.lags[-1])], 1.0), (low, high))
        level, told = part["verdict"]["level"], f"gain {gain_in(part['chains'][0])}"
        drawn += [
            *heading(_named(place, name), level, "", told, frame),
            *_ground(part, frame, line_.lags, y, numbers=frame.left == first),
            *(_line(one, _TOGETHER, x, y, most) for one in beside),
            element("g", element("title", escaped(name)), _line(line_, _OWN, x, y, most)),
        ]
    count = len([name for name in parts if name])
    more = f" The first {len(layers)} of {count} layers." if count > len(layers) else ""
    said = f"{_EACH}{_WHOLE if beside else ''}{'; '.join(_told(*one) for one in layers)}.{more}"
    return Picture("Layers side by side", sentence(whole or layers[0][1]), said, whole_size, tuple(drawn))


_EACH = "Each layer on its own: its gain by lag, all on one axis; dotted the thresholds. "
_WHOLE = "Dashed: all layers together. "


def _heights(part: Mapping[str, Any], lines: Sequence[Line]) -> tuple[float, float]:
    """From the lowest to the highest of all, the thresholds with them."""
    values = np.concatenate([*(one.norms for one in lines), [0.0], [*thresholds_of(part).values()]])
    low, high = spread(values[np.isfinite(values)], _LEAST)
    room = 0.03 * (high - low)
    return low - room, high + room


def _ground(part: Mapping[str, Any], frame: Frame, lags: Array, y: Axis, *, numbers: bool) -> Iterator[str]:
    """The grid with the thresholds, and the numbers of the axes; those of y where there is room for them."""
    font, ends = frame.font, {"x1": frame.left, "x2": frame.right}
    for value in y.ticks(2.2 * font):
        at = y.at(value)
        yield element("line", **ends, y1=at, y2=at, **stroke("grid"))
        if numbers:
            yield words(power_of_ten(value), frame.left - 0.4 * font, at + 0.35 * font, font, anchor="end")
    for value in thresholds_of(part).values():
        at, style = y.at(value), {"stroke_dasharray": "1 2"} | stroke("muted")
        yield element("line", **ends, y1=at, y2=at, **style)
    below = frame.bottom + 1.2 * font
    yield words(f"{lags[0]:g}", frame.left, below, font, anchor="start")
    yield words("lag", (frame.left + frame.right) / 2, below, font, "muted", anchor="middle")
    yield words(f"{lags[-1]:g}", frame.right, below, font, anchor="end")


def _line(one: Line, colour: int, x: Axis, y: Axis, most: int) -> str:
    width = 1.2 if colour else 2.0
    runs = stretches(*thinned(one.lags, one.norms, most), y.low, y.high)
    return "".join(line([(x.at(a), y.at(b)) for a, b in run], colour, width=width) for run in runs)


def _named(place: int, name: str) -> str:
    """As commands call it, and as its file does."""
    number = f"layer{place}"
    return number if name == number else f"{number} {shown(name)}"


def _told(name: str, part: Mapping[str, Any]) -> str:
    full = part["chains"][0]
    horizon, steps = full["horizon"]["median"], part["problem"]["steps"]
    reach = f", horizon {horizon:g} of {counted(steps, 'step')}" if horizon is not None else ""
    return f"{called(name, '')} {part['verdict']['level']}, gain {gain_in(full)}{reach}"
