"""Where data stand in a picture: axes with their ticks, legends, lines that are cut and thinned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array
from gradscope.report.pictures.axis import Axis
from gradscope.report.pictures.svg import element, escaped, number, short
from gradscope.report.pictures.theme import DASHES, fill, stroke
from gradscope.report.verdict import scientific

# A character's width and a line's height, of the height of the letters.
_WIDTH, _LINE = 0.6, 1.35
# Decades of an axis below which its ticks may be parts of one.
_FINE = 12
# How far beyond the rest of a picture a path is followed, of the height of that.
_NEAR = 0.4


def power_of_ten(log10: float) -> str:
    """A tick on a logarithmic axis: ``1e-12``, ``320``."""
    if -3 <= log10 <= 4:
        return np.format_float_positional(10.0**log10, 2, unique=False, fractional=False, trim="-")
    return scientific(log10, 1 if log10 == round(log10) else 2)


@dataclass(frozen=True)
class Frame:
    """The box in which data are drawn, in pixels; x to the right, y upwards."""

    left: float
    top: float
    right: float
    bottom: float
    font: float

    def axes(self, x: tuple[float, float], y: tuple[float, float]) -> tuple[Axis, Axis]:
        """The axes of what lies between these values."""
        return Axis(*x, self.left, self.right), Axis(*y, self.bottom, self.top)

    def drawn(
        self,
        x: Axis,
        y: Axis,
        titles: tuple[str, str],
        *,
        log_y: bool = False,
        whole_x: bool = False,
        labels: Sequence[tuple[float, str]] | None = None,
    ) -> str:
        """Grid, ticks with their numbers, and what the axes are.

        whole_x : x is counted; labels : in place of the numbers of x.
        """
        font, parts = self.font, []
        for value in y.ticks(2.2 * font):
            at, label = y.at(value), power_of_ten(value) if log_y else f"{value:g}"
            parts.append(_line(self.left, at, self.right, at))
            parts.append(words(label, self.left - 0.4 * font, at + 0.35 * font, font, anchor="end"))
        numbers = [(value, f"{value:g}") for value in x.ticks(4.2 * font, float(whole_x))]
        numbers = numbers if labels is None else [*labels]
        for value, label in numbers:
            at = x.at(value)
            parts.append(_line(at, self.bottom, at, self.bottom + 0.3 * font))
            parts.append(words(label, at, self.bottom + 1.3 * font, font, anchor="middle"))
        middle = (self.left + self.right) / 2
        parts.append(words(titles[0], middle, self.bottom + 2.6 * font, font, "muted", anchor="middle"))
        parts.append(words(titles[1], self.left, self.top - 0.6 * font, font, "muted"))
        return element("g", *parts)


def margin_of_decades(low: float, high: float, font: float) -> float:
    """Pixels that the numbers of a logarithmic axis take, wherever its ticks will be."""
    ends = [math.floor(low), math.ceil(high)]
    tenths = range(10 * ends[0], 10 * ends[1] + 1) if high - low < _FINE else ()
    return margin([power_of_ten(value) for value in (*ends, *(k / 10 for k in tenths))], font)


def margin(labels: Sequence[str], font: float) -> float:
    """Pixels that the numbers beside the y axis take."""
    return (max(map(len, labels), default=1) * _WIDTH + 0.8) * font


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **stroke("grid"))


def words(
    text: str,
    x: float,
    y: float,
    font: float,
    ink: str = "ink",
    *,
    anchor: str | None = None,
    bold: bool = False,
) -> str:
    """Text as text, that can be searched and copied."""
    return element(
        "text",
        escaped(text),
        x=x,
        y=y,
        font_size=font,
        text_anchor=anchor,
        font_weight="bold" if bold else None,
        **fill(ink),
    )


def width_of(text: str, font: float) -> float:
    """About how many pixels a text takes."""
    return len(text) * _WIDTH * font


@dataclass(frozen=True)
class Box:
    """A text on a picture: where it is anchored, and the pixels that it takes."""

    x: float
    y: float
    anchor: str
    left: float
    right: float
    top: float

    def hides(self, run: Sequence[tuple[float, float]]) -> bool:
        """Whether a line, whose points go from left to right, passes through it."""
        xs, ys = np.array(run).T
        at = np.linspace(max(self.left, xs[0]), min(self.right, xs[-1]), 24)
        heights = np.interp(at, xs, ys)
        return bool(at[0] <= at[-1] and ((heights > self.top) & (heights < self.y)).any())

    def meets(self, other: Box) -> bool:
        """Whether two texts lie on one another."""
        apart = self.right < other.left or other.right < self.left
        return not (apart or self.y < other.top or other.y < self.top)


def beside(
    text: str,
    level: float,
    frame: Frame,
    runs: Sequence[Sequence[tuple[float, float]]],
    taken: Sequence[Box],
    *,
    below: bool,
) -> Box:
    """Where the name of a level line hides least: of the lines, and of the names that stand already.

    below : the side that is tried first; under the frame are the numbers of its axis.
    """
    font = 0.85 * frame.font
    wide, gap = width_of(text, font), 0.3 * frame.font
    heights = [level + 1.1 * font, level - 0.4 * font]
    places = {
        "end": frame.right - gap,
        "start": frame.left + gap,
        "middle": (frame.left + frame.right) / 2,
    }
    found = []
    for y in heights if below else heights[::-1]:
        for anchor, x in places.items():
            left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = Box(x, y, anchor, left, left + wide, y - font)
            if y <= frame.bottom and (y - font >= frame.top or anchor == "end"):  # left above is the title
                found.append(box)
    return min(found, key=lambda box: sum(map(box.hides, runs)) + 100 * sum(map(box.meets, taken)))


def with_paths(ends: tuple[float, float], paths: Array) -> tuple[float, float]:
    """The range of what is looked at, and of the paths what is near: so far above it, or below."""
    low, high = ends
    paths, more = paths[np.isfinite(paths)], _NEAR * (high - low)
    near = max(float(paths.min(initial=low)), low - more)
    return min(low, near), max(high, min(float(paths.max(initial=high)), high + more))


def unseen(values: Array, ends: tuple[float, float]) -> str | None:
    """Where a line is of which a picture with these ends has nothing; zeros are below every picture."""
    if np.nanmax(values, initial=-math.inf) < ends[0]:
        return "Below"
    return "Above" if np.nanmin(values, initial=math.inf) > ends[1] else None


def outside_said(lines: Mapping[str, Array], ends: tuple[float, float]) -> list[str]:
    """Sentences on the lines that cannot be seen."""
    where = {name: unseen(values, ends) for name, values in lines.items()}
    return [
        f"{side} the picture: {', '.join(short(name) for name in names)}."
        for side in ("Below", "Above")
        if (names := [name for name, found in where.items() if found == side])
    ]


def hints(frame: Frame, x: Axis, places: Array, most: int, said: Callable[[float], str]) -> list[str]:
    """Stripes that are not seen, each with what it says of its place to a pointer that rests on it."""
    if not most or not len(places):
        return []
    places = places[np.unique(np.linspace(0, len(places) - 1, most).round().astype(int))]
    at = [x.at(place) for place in places.tolist()]
    edges = [frame.left, *((a + b) / 2 for a, b in itertools.pairwise(at)), frame.right]
    stripes = [
        element(
            "rect",
            element("title", escaped(said(place))),
            x=left,
            y=frame.top,
            width=right - left,
            height=frame.bottom - frame.top,
        )
        for place, (left, right) in zip(places.tolist(), itertools.pairwise(edges), strict=True)
    ]
    return [element("g", *stripes, fill="none", pointer_events="all")]


# -- lines ---------------------------------------------------------------------------------------------


def line(
    points: Sequence[tuple[float, float]], colour: int, *, dashed: bool = True, width: float = 1.6
) -> str:
    """A line through points in pixels, or a dot where there is one alone."""
    if len(points) == 1:
        return element("circle", cx=points[0][0], cy=points[0][1], r=width, **fill(colour))
    return element(
        "polyline",
        points=" ".join(f"{number(x)},{number(y)}" for x, y in points),
        stroke_width=width,
        stroke_dasharray=DASHES[colour % len(DASHES)] if dashed else None,
        stroke_linejoin="round",
        **stroke(colour),
    )


def thinned(x: Array, y: Array, most: int) -> tuple[Array, Array]:
    """At most so many of the points: of each stretch the first, lowest, highest and last."""
    if len(x) <= most:
        return x, y
    kept = []
    for part in np.array_split(np.arange(len(x)), most // 4):
        kept += [part[0], part[-1]]
        if not np.isnan(y[part]).all():
            kept += [part[np.nanargmin(y[part])], part[np.nanargmax(y[part])]]
    chosen = np.unique(kept)
    return x[chosen], y[chosen]


def stretches(x: Array, y: Array, low: float, high: float) -> Iterator[list[tuple[float, float]]]:
    """The stretches of a line between two heights, cut where it leaves; NaN interrupts it."""
    run: list[tuple[float, float]] = []
    before: tuple[float, float] | None = None
    for point in zip(x.tolist(), y.tolist(), strict=True):
        inside = low <= point[1] <= high
        if math.isnan(point[1]):
            before, inside = None, False
        elif before is not None and inside != (low <= before[1] <= high):
            run.append(_crossing(before, point, low, high))
        if inside:
            run.append(point)
        elif run:
            yield run
            run = []
        before = None if math.isnan(point[1]) else point
    if run:
        yield run


def _crossing(a: tuple[float, float], b: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """Where the way from a to b, of which one is outside, meets the border."""
    outside = b[1] if low <= a[1] <= high else a[1]
    border = low if outside < low else high
    part = (border - a[1]) / (b[1] - a[1])
    return a[0] + part * (b[0] - a[0]), border


# -- legends -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Legend:
    """Names of lines with their colours and patterns, in rows of so many pixels."""

    names: Sequence[tuple[str, int]]
    width: float
    font: float

    @property
    def height(self) -> float:
        """Pixels that it takes."""
        return len(self._rows()) * _LINE * self.font

    def drawn(self, left: float, top: float) -> str:
        """Each a piece of its line, and its name."""
        parts = []
        for number_, row in enumerate(self._rows()):
            x, y = left, top + (number_ + 0.7) * _LINE * self.font
            for name, colour in row:
                end = x + 2.2 * self.font
                parts.append(line([(x, y - 0.3 * self.font), (end, y - 0.3 * self.font)], colour))
                parts.append(words(name, end + 0.4 * self.font, y, self.font))
                x += self._taken(name)
        return element("g", *parts)

    def _taken(self, name: str) -> float:
        return 3.8 * self.font + width_of(name, self.font)

    def _rows(self) -> list[list[tuple[str, int]]]:
        rows: list[list[tuple[str, int]]] = [[]]
        room = self.width
        for name, colour in ((short(name), colour) for name, colour in self.names):
            if rows[-1] and self._taken(name) > room:
                rows.append([])
                room = self.width
            rows[-1].append((name, colour))
            room -= self._taken(name)
        return rows
