"""Who carries the gradient: bars of all steps, areas by lag."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.report.pictures.axis import Axis, spread
from gradscope.report.pictures.frame import Frame, hints, stretches, width_of, words
from gradscope.report.pictures.parts import by_share, floats, sentence
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, escaped, number, short
from gradscope.report.pictures.theme import COLOURS, Size, fill, stroke

_BAR = 1.5
# The least that a share of one decimal shows.
_SHOWN = 1e-3


def draw_share(part: Mapping[str, Any], size: Size) -> Picture:
    """The paths from the largest share to the smallest, with the lags below."""
    shares = by_share(part)
    if len(shares) < 2 or not any(map(math.isfinite, shares.values())):
        raise InputError(
            "the result has no shares of paths: a chain of bare Jacobians has none, and one path carries all"
        )
    order = [*shares]
    shown = order[: COLOURS - 1]
    font, parts = size.font, []
    names = max(width_of(short(name), font) for name in shown) + font
    bar = Axis(
        0.0, max(1.0, *(abs(np.nan_to_num(shares[name])) for name in shown)), names, size.width - 5 * font
    )
    for row, name in enumerate(shown):
        parts += _bar(name, shares[name], row, bar, font)
    below = (len(shown) * _BAR + 3.2) * font
    profile = part["profile"]
    by_lag = {name: floats(profile["share"][name]) for name in shown if name in profile["share"]}
    lags = floats(profile["lag"])
    if len(lags) < 2 or not by_lag:
        size = dataclasses.replace(size, height=below - 2 * font)
    else:
        frame = Frame(3.4 * font, below, size.width - font, size.height - 3 * font, font)
        parts += _by_lag(lags, by_lag, frame, size.points // 2, size.hints)
    said = _said(shares, order, shown)
    return Picture("Who carries the gradient", sentence(part), said, size, tuple(parts))


def _bar(name: str, share: float, row: int, bar: Axis, font: float) -> list[str]:
    y = (row * _BAR + 0.3) * font
    length = abs(share) if math.isfinite(share) else 0.0
    label = "-" if math.isnan(share) else f"{100 * share:z.1f} %"
    rectangle = element(
        "rect", x=bar.start, y=y, width=bar.at(length) - bar.start, height=font, **fill(row + 1)
    )
    name_ = words(short(name), bar.start - 0.5 * font, y + 0.85 * font, font, anchor="end")
    return [name_, rectangle, words(label, bar.at(length) + 0.4 * font, y + 0.85 * font, font)]


def _by_lag(lags: Array, by_lag: Mapping[str, Array], frame: Frame, most: int, places: int) -> list[str]:
    """Areas on one another from 0 upwards, those that work against from 0 downwards.

    most : lags that are drawn, the same of all: areas have no other edges in common; places : that say their
        shares to a pointer.
    """
    chosen = np.unique(np.linspace(0, len(lags) - 1, most).round().astype(int))
    lags, values = lags[chosen], np.array([*by_lag.values()])[:, chosen]
    upper = np.where(np.isfinite(values), values, 0.0).clip(0).cumsum(axis=0)
    lower = np.where(np.isfinite(values), values, 0.0).clip(None, 0).cumsum(axis=0)
    x, y = frame.axes((1.0, float(lags[-1])), spread([lower.min(), upper.max(), 0.0, 1.0], 1.0))
    titles = ("lag k, in steps", "share at the step that lag k reaches back through")
    parts = [frame.drawn(x, y, titles, whole_x=True)]
    for number_, name in enumerate(by_lag):
        areas = []
        for outer in (upper, lower):
            inner = outer[number_ - 1] if number_ else np.zeros(len(lags))
            gone = np.where(np.isfinite(values[number_]), 0.0, np.nan)
            areas += _areas(lags, inner + gone, outer[number_] + gone, x, y)
        style = stroke("paper") | fill(number_ + 1) | {"stroke_width": 0.6}
        style["class_"] = f"{stroke('paper')['class_']} {style['class_']}"
        parts.append(
            element(
                "g",
                element("title", escaped(name)),
                *(element("polygon", points=area, **style) for area in areas),
            )
        )

    def said(lag: float) -> str:
        there = zip(by_lag, values[:, lags == lag][:, 0].tolist(), strict=True)
        each = (f"{short(name)} {100 * share:z.1f} %" for name, share in there if math.isfinite(share))
        return f"lag {lag:g}: {', '.join(each)}"

    return [*parts, *hints(frame, x, lags, places, said)]


def _areas(lags: Array, inner: Array, outer: Array, x: Axis, y: Axis) -> list[str]:
    """Outlines between two lines, a piece for every stretch on which both are known."""
    apart = inner != outer
    thick = apart.copy()
    thick[1:] |= apart[:-1]  # an area begins and ends in a point
    thick[:-1] |= apart[1:]
    inner, outer = (np.where(thick, edge, np.nan) for edge in (inner, outer))
    found = []
    edges = (stretches(lags, edge, -math.inf, math.inf) for edge in (inner, outer))
    for there, back in zip(*edges, strict=True):
        outline: Sequence[tuple[float, float]] = [*there, *back[::-1]]
        found.append(" ".join(f"{number(x.at(a))},{number(y.at(b))}" for a, b in outline))
    return found


def _said(shares: Mapping[str, float], order: Sequence[str], shown: Sequence[str]) -> str:
    each = [f"{short(name)} {100 * shares[name]:z.1f} %" for name in shown if math.isfinite(shares[name])]
    said = [f"Shares: {', '.join(each)}."]
    if min(np.nan_to_num([*shares.values()])) < -_SHOWN / 2:
        said.append("A negative share works against the others.")
    if len(order) > len(shown):
        said.append(f"The {len(shown)} largest of {len(order)} paths.")
    return " ".join(said)
