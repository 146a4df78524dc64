"""A run of checkpoints: gain and horizon against the step, and the gain by lag over training."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.report.gain_words import gain_lost, lost_in
from gradscope.report.pictures.axis import Axis, spread
from gradscope.report.pictures.colours import cividis, ground, image, in_palette
from gradscope.report.pictures.frame import Frame, line, margin, power_of_ten, stretches, thinned, words
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, escaped
from gradscope.report.pictures.theme import Size, stroke
from gradscope.report.verdict import scientific

_NUMBERS = re.compile(r"\d+")
# Columns of the map at most; log10 of the gains between which it tells apart, if any are.
_COLUMNS, _LOW, _HIGH = 400, -12.0, 6.0
# Parts of the height that gain, horizon and map have.
_PARTS = (0.3, 0.24, 0.46)
# Letters between two labels of an axis.
_APART = 1.5


def draw_training(rows: Sequence[Mapping[str, Any]], size: Size) -> Picture:
    """A column for every checkpoint, in the order of their steps where names tell these, else of the rows."""
    rows = _in_order(rows)
    steps, called = _steps(rows)
    gains = np.array([_gain(row) for row in rows])
    horizons = np.array([_value(row, "horizon") for row in rows])
    if not np.isfinite(gains).any():
        raise InputError("no row has a gain: no checkpoint could be measured, or no gradient gets through")
    font = size.font
    room = size.height - 7.8 * font
    ticks = Axis(*spread(gains[np.isfinite(gains)], 1.0), _PARTS[0] * room, 0).ticks(_APART * font)
    labels = [*map(power_of_ten, ticks), *(f"{value:g}" for value in horizons[np.isfinite(horizons)])]
    left = margin(labels, font)
    frames, top = [], 1.6 * font
    for part in _PARTS:
        bottom = top + part * room
        frames.append(Frame(left, top, size.width - font, bottom, font))
        top = bottom + 1.4 * font
    parts = [
        *_course(frames[0], "gain", gains, log=True),
        *_course(frames[1], "horizon, in steps", horizons, log=False),
        *_map(frames[2], rows, steps),
        *_axis(frames[2], steps, called, size),
    ]
    failed = sum(isinstance(row.get("error"), str) for row in rows)
    first, last = (scientific(float(gains[~np.isnan(gains)][at])) for at in (0, -1))
    lost = f"; {failed} could not be measured" if failed else ""
    many = f"{len(rows)} checkpoint{'s' * (len(rows) > 1)}"
    said = (
        f"{many}{lost}: the gain goes from {first} to {last}. Above the gain, then the horizon; below the "
        "gain by lag, a column for every checkpoint."
    )
    verdicts = [str(row["verdict"]) for row in rows if row.get("verdict")]
    before = f"{verdicts[-1].capitalize()} at the end." if verdicts else ""
    return Picture("Training", before, said, size, tuple(parts))


def _in_order(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """By the numbers in their names, where nothing else tells these apart; shells put 10 before 2."""
    names = [str(row["checkpoint"]) for row in rows]
    if len({_NUMBERS.sub("", name) for name in names}) > 1:
        return rows

    def numbers(place: int) -> list[tuple[int, str]]:
        whole = [one.lstrip("0") for one in _NUMBERS.findall(names[place])]
        return [(len(one), one) for one in whole]  # however long, as numbers

    return [rows[place] for place in sorted(range(len(rows)), key=numbers)]


def _gain(row: Mapping[str, Any]) -> float:
    """log10 of it, -inf where no gradient gets through, NaN where it is not known."""
    if gain_lost(row):
        return math.nan
    if isinstance(row.get("verdict"), str) and "log10_norm" in row and row["log10_norm"] is None:
        return -math.inf
    return _value(row, "log10_norm")


def _value(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _steps(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], str]:
    """The last number in every name where these rise, else the places; and what they are."""
    found = [_NUMBERS.findall(str(row["checkpoint"])) for row in rows]
    if all(found):
        numbers = [int(one[-1][:15]) for one in found]
        if all(a < b for a, b in itertools.pairwise(numbers)):
            return numbers, "training step"
    return list(range(1, len(rows) + 1)), "checkpoint"


def _course(frame: Frame, title: str, values: Array, *, log: bool) -> list[str]:
    """A line over the columns, interrupted where nothing is known; a gain of 0 is at the bottom."""
    known = values[np.isfinite(values)]
    font, count = frame.font, len(values)
    parts = [words(title, frame.left, frame.top - 0.4 * font, 0.9 * font, "muted")]
    if not len(known):
        return parts
    low, high = spread(known if log else [*known, 0.0], 1.0)
    if np.isneginf(values).any():
        low -= 0.1 * (high - low)
        values = np.maximum(values, low)
    x, y = frame.axes((-0.5, count - 0.5), (low, high))
    for tick in y.ticks(_APART * font):
        at = y.at(tick)
        parts.append(element("line", x1=frame.left, x2=frame.right, y1=at, y2=at, **stroke("grid")))
        label = power_of_ten(tick) if log else f"{tick:g}"
        parts.append(words(label, frame.left - 0.4 * font, at + 0.35 * font, font, anchor="end"))
    drawn = stretches(*thinned(np.arange(float(count)), values, 800), low, high)
    runs = [line([(x.at(u), y.at(v)) for u, v in run], 1 if log else 2, dashed=False) for run in drawn]
    return [*parts, element("g", element("title", escaped(title)), *runs)]


def _map(frame: Frame, rows: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> list[str]:
    """The gain by lag, the first lag below; a column that is not known is empty."""
    font = frame.font
    curves = [row.get("by_lag") or {"lag": [], "log10_norm": []} for row in rows]
    lags = max((one["lag"] for one in curves), key=len)
    parts = [words("gain by lag", frame.left, frame.top - 0.4 * font, 0.9 * font, "muted")]
    if not lags:
        return [*parts, words("rows of before have no gain by lag", frame.left, frame.top + 2 * font, font)]
    cells = np.full((len(lags), len(rows)), np.nan)
    for column, one in enumerate(curves):
        lost = lost_in(one)
        for lag, norm in zip(one["lag"], one["log10_norm"], strict=True):
            if lag in lags and lag not in lost:
                cells[lags.index(lag), column] = -math.inf if norm is None else float(norm)
    some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _COLUMNS)).round().astype(int))
    known = cells[np.isfinite(cells)]
    low, high = spread(known, 1.0) if known.size else (-1.0, 0.0)
    if low < _HIGH and high > _LOW:
        low, high = max(low, _LOW), min(high, _HIGH)
    floored = np.where(np.isneginf(cells), low, cells)[::-1, some]
    parts += [ground(frame), image(in_palette(floored, low, high), cividis(), frame)]
    tall = (frame.bottom - frame.top) / len(lags)
    for at in range(0, len(lags), max(1, math.ceil(1.3 * font / tall))):
        y = frame.bottom - (at + 0.5) * tall + 0.35 * font
        parts.append(words(f"{lags[at]:g}", frame.left - 0.4 * font, y, font, anchor="end"))
    return [*parts, *_key(frame, low, high)]


def _key(frame: Frame, low: float, high: float) -> list[str]:
    """What the colours are, to the right of the map's heading."""
    font = frame.font
    right, top = frame.right - 4.2 * font, frame.top - 1.1 * font
    bar = Frame(right - 7 * font, top, right, top + 0.7 * font, font)
    return [
        words(scientific(low, 1), bar.left - 0.3 * font, frame.top - 0.4 * font, 0.9 * font, anchor="end"),
        image(in_palette(np.linspace(0, 1, 64)[None], 0.0, 1.0), cividis(), bar),
        words(scientific(high, 1), bar.right + 0.3 * font, frame.top - 0.4 * font, 0.9 * font),
    ]


def _axis(frame: Frame, steps: Sequence[int], called: str, size: Size) -> list[str]:
    """The steps below the map, as many as fit."""
    font, count = frame.font, len(steps)
    wide = (frame.right - frame.left) / count
    widest = max(len(str(step)) for step in steps)
    parts = []
    for at in range(0, count, max(1, math.ceil((0.6 * widest + 1.2) * font / wide))):
        x = frame.left + (at + 0.5) * wide
        parts.append(words(str(steps[at]), x, frame.bottom + 1.2 * font, font, anchor="middle"))
    middle = (frame.left + frame.right) / 2
    return [*parts, words(called, middle, size.height - 0.5 * font, font, "muted", anchor="middle")]
