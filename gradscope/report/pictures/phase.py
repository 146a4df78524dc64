"""A phase diagram: the rate over two options of a grid, where it is zero, and where theory expects that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.report.phase import MOST_PHASES, Phase, contour, phases
from gradscope.report.pictures.colours import image, shades
from gradscope.report.pictures.frame import Frame, Legend, line, margin, spread, stretches, words
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, escaped, short
from gradscope.report.pictures.theme import Size, stroke

# From blue, what shrinks, over white, a rate of zero, to orange: Okabe and Ito's, told apart by all.
_ANCHORS = ((0, 68, 119), (86, 160, 211), (255, 255, 255), (236, 150, 62), (150, 62, 0))
_SHADES = 127  # an odd number: one of them is zero's
_MEASURED, _THEORY = "measured: rate 0", "theory: rate 0"
_DASHED = (None, "5 3")
# Columns of diagrams side by side, and the width that each has at least, in letters.
_NARROWEST = 26


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
    ends = _ends(np.concatenate([phase.rate.ravel() for phase in found]))
    parts: list[str] = []
    if found[0].y:
        for phase, frame in zip(found, _frames(found, size), strict=True):
            parts += _map(phase, ends, frame)
        parts += _key(found, ends, size)
    else:
        parts += _lines(found, size)
    subjects = dict.fromkeys(str(row["subject"]) for row in rows if row.get("subject"))
    before = f"{next(iter(subjects))}." if len(subjects) == 1 else f"{len(rows)} points."
    return Picture("Rate over the grid", before, _said(found), size, tuple(parts))


def _said(found: Sequence[Phase]) -> str:
    """What there is to see, for those who do not."""
    levels = np.concatenate([phase.level.ravel() for phase in found])
    counts = {name: int((levels == name).sum()) for name in dict.fromkeys(levels) if name}
    failed = int((levels == "").sum())
    told = [f"{count} {name}" for name, count in counts.items()] + [f"{failed} not measured"] * bool(failed)
    first = found[0]
    over = f"{first.x} and {first.y}" if first.y else first.x
    theory = any(np.isfinite(phase.theory).any() for phase in found)
    lines = f"lines: where it is zero, measured{' and by mean-field theory' if theory else ''}"
    of = f"; medians of {first.of} seeds" if first.of > 1 else ""
    return f"Nats per step over {over}, {len(levels)} points: {', '.join(told)}; {lines}{of}."


def _ends(rate: Array) -> tuple[float, float]:
    """The lowest and the highest rate, at least a little on both sides of zero."""
    known = rate[np.isfinite(rate)]
    low, high = (float(known.min()), float(known.max())) if known.size else (-1.0, 1.0)
    least = 0.02 * max(-low, high, 1e-6)
    return min(low, -least), max(high, least)


# -- two axes ----------------------------------------------------------------------------------------


def _frames(found: Sequence[Phase], size: Size) -> list[Frame]:
    """Boxes side by side, in rows where they do not fit; above the key."""
    font, count = size.font, len(found)
    across = max(1, min(count, int(size.width / (_NARROWEST * font))))
    down = math.ceil(count / across)
    wide, tall = size.width / across, (size.height - 4.6 * font) / down
    left = margin([f"{y:g}" for y in found[0].ys], font) + 0.4 * font
    frames = []
    for number in range(count):
        x, y = number % across * wide, number // across * tall
        frames.append(Frame(x + left, y + 1.7 * font, x + wide - font, y + tall - 2.7 * font, font))
    return frames


def _map(phase: Phase, ends: tuple[float, float], frame: Frame) -> list[str]:
    font, (high, wide) = frame.font, phase.rate.shape
    title = f"{short(phase.y)}{f' ({short(phase.title, 40)})' if phase.title else ''}"
    parts = [
        words(title, frame.left, frame.top - 0.5 * font, font, "muted"),
        image(_shades(phase.rate, ends)[::-1], shades(_ANCHORS, _SHADES), frame),
        *_not_measured(phase, frame),
    ]
    for k, values in enumerate((phase.rate, phase.theory)):
        if k and not np.isfinite(values).any():
            continue
        drawn = (_line(points, frame, wide, high, _DASHED[k]) for points in contour(values))
        parts.append(element("g", element("title", escaped((_MEASURED, _THEORY)[k])), *drawn))
    for at, text in _labels(phase.xs, (frame.right - frame.left) / wide, font):
        x = frame.left + (at + 0.5) * (frame.right - frame.left) / wide
        parts.append(words(text, x, frame.bottom + 1.15 * font, font, anchor="middle"))
    step = (frame.bottom - frame.top) / high
    every = max(1, math.ceil(1.2 * font / step))
    for at in range(0, high, every):
        y = frame.bottom - (at + 0.5) * step + 0.35 * font
        parts.append(words(f"{phase.ys[at]:g}", frame.left - 0.4 * font, y, font, anchor="end"))
    middle = (frame.left + frame.right) / 2
    parts.append(words(short(phase.x), middle, frame.bottom + 2.3 * font, font, "muted", anchor="middle"))
    return parts


def _labels(values: Sequence[float], apart: float, font: float) -> list[tuple[int, str]]:
    """As many as there is room for, each with its place."""
    widest = max(len(f"{value:g}") for value in values)
    every = max(1, math.ceil((0.6 * widest + 0.8) * font / apart))
    return [(at, f"{values[at]:g}") for at in range(0, len(values), every)]


def _line(points: Sequence[tuple[float, float]], frame: Frame, wide: int, high: int, dash: str | None) -> str:
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
    high, wide = phase.rate.shape
    across, up = (frame.right - frame.left) / wide, (frame.bottom - frame.top) / high
    arm = 0.25 * min(across, up)
    parts = []
    for i, j in zip(*np.nonzero(phase.failed), strict=True):
        x, y = frame.left + (j + 0.5) * across, frame.bottom - (i + 0.5) * up
        for sign in (1, -1):
            ends = {"x1": x - arm, "x2": x + arm, "y1": y - sign * arm, "y2": y + sign * arm}
            parts.append(element("line", **ends, **stroke("muted")))
    return [element("g", element("title", "not measured"), *parts)] if parts else []


def _shades(rate: Array, ends: tuple[float, float]) -> Array:
    """In the palette: each side of zero as far as it goes; 0 what is not known."""
    low, high = ends
    with np.errstate(invalid="ignore"):
        part = np.where(rate < 0, -np.clip(rate / low, 0, 1), np.clip(rate / high, 0, 1))
    middle = _SHADES // 2
    placed = np.nan_to_num(np.round(middle * part), nan=0.0) + middle + 1
    return np.where(np.isnan(rate), 0, placed).astype(np.uint8)


def _key(found: Sequence[Phase], ends: tuple[float, float], size: Size) -> list[str]:
    """What the colours are, and what the lines."""
    font, top = size.font, size.height - 4.2 * size.font
    bar = Frame(font, top, 0.5 * size.width, top + 0.8 * font, font)
    below = bar.bottom + 1.2 * font
    parts = [
        image(np.arange(1, _SHADES + 1)[None], shades(_ANCHORS, _SHADES), bar),
        words(f"{ends[0]:.2g}", bar.left, below, font),
        words("0", (bar.left + bar.right) / 2, below, font, anchor="middle"),
        words(f"{ends[1]:+.2g}", bar.right, below, font, anchor="end"),
        words("rate, nats per step", bar.left, below + 1.3 * font, font, "muted"),
    ]
    named: list[tuple[str, str | None]] = [(_MEASURED, _DASHED[0])]
    if any(np.isfinite(phase.theory).any() for phase in found):
        named.append((_THEORY, _DASHED[1]))
    for row, (name, dash) in enumerate(named):
        x, y = 0.5 * size.width + 1.5 * font, top + (0.9 + 1.5 * row) * font
        at = f"{x:.1f},{y - 0.3 * font:.1f} {x + 2.4 * font:.1f},{y - 0.3 * font:.1f}"
        parts.append(_edged(at, dash))
        parts.append(words(name, x + 3 * font, y, font))
    return parts


# -- one axis ----------------------------------------------------------------------------------------


def _lines(found: Sequence[Phase], size: Size) -> list[str]:
    """The rate along the axis, a line for each of the others, and theory's."""
    font = size.font
    drawn = [(phase.title or "measured", phase.xs, phase.rate[0]) for phase in found]
    drawn += [
        (f"theory{f' ({phase.title})' if phase.title else ''}", phase.xs, phase.theory[0])
        for phase in found
        if np.isfinite(phase.theory).any()
    ]
    known = np.concatenate([values[np.isfinite(values)] for _, _, values in drawn])
    if not known.size:
        raise InputError("no point of the grid has a rate: no gradient gets through, or none was measured")
    legend = Legend([(name, k) for k, (name, _, _) in enumerate(drawn)], size.width - 2 * font, font)
    low, high = spread([*known, 0.0], 1e-3)
    labels = [f"{low:.3g}", f"{high:.3g}"]
    frame = Frame(
        margin(labels, font) + 0.6 * font,
        2.2 * font,
        size.width - font,
        size.height - 3.4 * font - legend.height,
        font,
    )
    x, y = frame.axes(spread(found[0].xs, 1e-9), (low, high))
    parts = [frame.drawn(x, y, (short(found[0].x), "rate, nats per step"))]
    zero = y.at(0.0)
    parts.append(element("line", x1=frame.left, x2=frame.right, y1=zero, y2=zero, **stroke("muted")))
    for k, (name, xs, values) in enumerate(drawn):
        runs = stretches(np.array(xs), np.where(np.isinf(values), np.nan, values), low, high)
        pieces = [line([(x.at(u), y.at(v)) for u, v in run], k) for run in runs]
        parts.append(element("g", element("title", escaped(name)), *pieces))
    return [*parts, legend.drawn(font, frame.bottom + 3.1 * font)]
