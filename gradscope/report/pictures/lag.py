"""Gain by lag: how far back the gradient of the last step reaches, a line for every chain."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.report.gain_words import gain_told, lost_in
from gradscope.report.pictures.axis import spread
from gradscope.report.pictures.frame import (
    Box,
    Frame,
    Legend,
    beside,
    hints,
    line,
    margin_of_decades,
    outside_said,
    stretches,
    thinned,
    unseen,
    with_paths,
    words,
)
from gradscope.report.pictures.parts import chains_of, colours_of, floats, median, sentence
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, escaped, number, short
from gradscope.report.pictures.theme import COLOURS, Size, fill, stroke
from gradscope.report.verdict import error_figures, scientific

# Decades that an axis has at least.
_LEAST = 2.0
_LOSS = "loss |dL/ds|"
# Colour of the band of errors.
ERROR = 5


class Line(NamedTuple):
    """A chain, or the loss: log10 of its norms at some lags, NaN where zero, or at the lags ``lost``."""

    name: str
    lags: Array
    norms: Array
    colour: int
    lost: Collection[float] = ()


def draw_lag(part: Mapping[str, Any], size: Size) -> Picture:
    """All chains and the loss by lag, the range of the batch, thresholds, and the error of the gain."""
    lines = lines_of(part)
    full, (low, high) = lines[0], heights(part, lines)
    legend = Legend(
        [(one.name, one.colour) for one in lines if one is full or not unseen(one.norms, (low, high))],
        size.width - 2 * size.font,
        size.font,
    )
    frame = Frame(
        margin_of_decades(low, high, size.font) + 0.6 * size.font,
        2.2 * size.font,
        size.width - size.font,
        size.height - 3.4 * size.font - legend.height,
        size.font,
    )
    x, y = frame.axes(spread([1.0, full[1][-1]], 1.0), (low, high))

    def placed(lags: Array, norms: Array) -> list[list[tuple[float, float]]]:
        return [
            [(x.at(lag), y.at(norm)) for lag, norm in run]
            for run in stretches(*thinned(lags, norms, size.points), low, high)
        ]

    runs = [placed(one.lags, one.norms) for one in lines]
    drawn = [
        element(
            "g",
            element("title", escaped(one.name)),
            *(line(run, one.colour, width=1.2 if one.colour else 2.2) for run in of_line),
        )
        for one, of_line in reversed([*zip(lines, runs, strict=True)])
    ]
    band = _error(part, full, x.at, y.at, (low, high))
    parts = (
        frame.drawn(x, y, ("lag k, in steps", "gain, sigma_1 of the last k steps"), log_y=True, whole_x=True),
        *_range(part, size.points, x.at, y.at, low, high),
        *_thresholds(part, frame, y.at, [run for of_line in runs for run in of_line]),
        *band,
        *drawn,
        *hints(frame, x, full.lags, size.hints, lambda lag: _at(lines, lag)),
        legend.drawn(size.font, frame.bottom + 3.1 * size.font),
    )
    said = said_of(part, lines, (low, high), error=_unseen_error(part, band))
    return Picture("Gain by lag", sentence(part), said, size, parts)


def _at(lines: Sequence[Line], lag: float) -> str:
    """Every line's gain there."""
    each = [
        f"{short(one.name)} {gain_told(None if math.isnan(norm) else float(norm), lost=lag in one.lost)}"
        for one in lines
        for norm in one.norms[one.lags == lag][:1]
    ]
    return f"lag {lag:g}: {', '.join(each)}"


def lines_of(part: Mapping[str, Any]) -> list[Line]:
    """The full chain, the loss, and the paths that carry most; raises InputError where there are none."""
    chains, profile, colours = chains_of(part), part["profile"], colours_of(part)
    found = []
    for chain in chains:
        name = chain["name"]
        if by_lag := chain.get("by_lag"):
            colour = 0 if chain is chains[0] else colours[name]
            found.append(_line(name, by_lag, floats(by_lag["log10_norm"]), colour))
        elif chain is chains[0] and profile["lag"]:  # of before 0.1 was released
            found.append(_line(name, profile, median(profile["log10_norm"]), 0))
    if not found or not len(found[0].lags):
        raise InputError("the result has no gain by lag (--only verdict): analyse without --only verdict")
    loss = [*_loss(part)]
    paths = sorted(found[1:], key=lambda one: one.colour)
    return [found[0], *loss, *(one for one in paths if one.colour < COLOURS - len(loss))]


def _line(name: str, told: Mapping[str, Any], norms: Array, colour: int) -> Line:
    return Line(name, floats(told["lag"]), norms, colour, lost_in(told))


def _loss(part: Mapping[str, Any]) -> Iterator[Line]:
    """Its line, beside the gain's, if it sends anything back; the last colour is its own."""
    if loss := part.get("loss"):
        lags, norms = floats(loss["profile"]["lag"]), median(loss["profile"]["log10_norm"])
        if len(norms) and not math.isnan(norms[0]):
            lost = lags.tolist() if "unmeasured" in loss else []
            yield Line(_LOSS, lags[1:], norms[1:] - norms[0], COLOURS - 1, lost)


def thresholds_of(part: Mapping[str, Any]) -> dict[str, float]:
    """log10 of each, by its level."""
    return {
        name: math.log10(part["thresholds"][key])
        for name, key in (("vanishing", "vanishing_below"), ("exploding", "exploding_above"))
    }


def heights(part: Mapping[str, Any], lines: list[Line]) -> tuple[float, float]:
    """From which decade to which: of the whole, the loss and the thresholds; of paths what is near."""
    main = [one.norms for k, one in enumerate(lines) if not k or one.name == _LOSS]
    main.append(np.ravel([_ends(row) for row in part["profile"]["log10_norm"]]))
    values = np.concatenate([*main, [0.0], [*thresholds_of(part).values()]])
    low, high = spread(values[np.isfinite(values)], _LEAST)
    room = 0.02 * (high - low)
    low, high = with_paths((low, high), np.concatenate([one.norms for one in lines]))
    return low - room, high + room


def _ends(row: list[float | None]) -> list[float]:
    norms = floats(row)
    norms = norms[np.isfinite(norms)]
    return [norms.min(), norms.max()] if len(norms) else [0.0, 0.0]


def _range(part: Mapping[str, Any], most: int, x: Any, y: Any, low: float, high: float) -> list[str]:
    """From the lowest to the highest gain of the batch."""
    profile = part["profile"]
    if len(profile["log10_norm"]) < 2:
        return []
    rows, lags = np.array([floats(row) for row in profile["log10_norm"]]), floats(profile["lag"])
    known = np.isfinite(rows).any(axis=0)
    if not known.any():
        return []
    rows, lags = rows[:, known], lags[known]
    lower = thinned(lags, np.clip(np.nanmin(rows, axis=0), low, high), most)
    upper = thinned(lags, np.clip(np.nanmax(rows, axis=0), low, high), most)
    there = [(x(a), y(b)) for a, b in zip(*map(np.ndarray.tolist, lower), strict=True)]
    back = [(x(a), y(b)) for a, b in zip(*map(np.ndarray.tolist, upper), strict=True)][::-1]
    outline = " ".join(f"{number(a)},{number(b)}" for a, b in there + back)
    return [
        element(
            "polygon", element("title", "range of the batch"), points=outline, opacity=0.14, **fill("ink")
        )
    ]


def _thresholds(
    part: Mapping[str, Any], frame: Frame, y: Any, runs: Sequence[Sequence[tuple[float, float]]]
) -> list[str]:
    parts: list[str] = []
    taken: list[Box] = []
    for name, value in thresholds_of(part).items():
        at = y(value)
        style = {"stroke_dasharray": "1 2"} | stroke("muted")
        parts.append(element("line", x1=frame.left, y1=at, x2=frame.right, y2=at, **style))
        box = beside(name, at, frame, runs, taken, below=name == "vanishing")
        parts.append(words(name, box.x, box.y, 0.85 * frame.font, "muted", anchor=box.anchor))
        taken.append(box)
    return parts


def _error(part: Mapping[str, Any], full: Line, x: Any, y: Any, ends: tuple[float, float]) -> list[str]:
    """The error of the whole chain's gain, where it is wider than the line: a band, or a bar at the end."""
    lags, norms, errors = _with_errors(part, full)
    if not len(lags) or np.abs([y(error) - y(0) for error in errors.tolist()]).max() < 1:
        return []
    title = element("title", "error of the gain")
    edges = [np.clip(norms + side * errors, *ends).tolist() for side in (1, -1)]
    over, under = ([(x(a), y(b)) for a, b in zip(lags.tolist(), edge, strict=True)] for edge in edges)
    if len(lags) == 1:
        bar = {"x1": over[0][0], "x2": over[0][0], "y1": over[0][1], "y2": under[0][1], "stroke_width": 3.0}
        return [element("line", title, **bar, **stroke("ink"))]
    outline = " ".join(f"{number(a)},{number(b)}" for a, b in over + under[::-1])
    return [element("polygon", title, points=outline, opacity=0.3, **fill(ERROR))]


def _with_errors(part: Mapping[str, Any], full: Line) -> tuple[Array, Array, Array]:
    """Lags of the line from the first to the last of which the error is known, norms, and errors.

    Between those that are known it is interpolated, both in the logarithm.
    """
    told = part["profile"].get("error") or {"lag": [full.lags[-1]], "log10_norm": [_error_of(part)]}
    at, errors = floats(told["lag"]), floats(told["log10_norm"])
    some = np.isfinite(full.norms) & (full.lags >= at[0]) & (full.lags <= at[-1])
    lags = full.lags[some]
    between = np.exp(np.interp(np.log(lags), np.log(at), np.log(np.maximum(errors, 1e-300))))
    return lags, full.norms[some], between


def _error_of(part: Mapping[str, Any]) -> float:
    return float(np.fmax.reduce(floats(part["chains"][0].get("log10_norm_error") or [0.0])))


def _unseen_error(part: Mapping[str, Any], band: list[str]) -> Iterator[str]:
    """Why there is no band of errors, or of the last lag alone."""
    if not band and _error_of(part):
        yield "Its error, drawn, would be thinner than its line."
    if len((part["profile"].get("error") or {"lag": []})["lag"]) < 2 < len(part["profile"]["lag"]):
        yield "At shorter lags its error was not estimated."


def _errors_said(part: Mapping[str, Any]) -> str:
    """At the last lag, and at others where it is known."""
    known = floats((part["profile"].get("error") or {"log10_norm": []})["log10_norm"])
    last = error_figures(_error_of(part))
    return (
        f"{last}, at {len(known)} lags {error_figures(known.min())} to {error_figures(known.max())}"
        if len(known) > 1
        else last
    )


def said_of(
    part: Mapping[str, Any],
    lines: list[Line],
    ends: tuple[float, float],
    *,
    area: bool = True,
    error: Iterable[str] = (),
) -> str:
    """What there is to see, and what cannot be seen.

    area : whether the range of the batch is drawn; error : what else there is to say of that of the gain.
    """
    lags, norms, lost = lines[0].lags, lines[0].norms, lines[0].lost
    if math.isnan(norms[-1]) and lags[-1] not in lost:
        zero = np.isnan(norms) & ~np.isin(lags, [*lost])
        exactly = "exactly " if part["chains"][0].get("exact_zeros") else ""
        last = f"{exactly}0 from lag {lags[zero][0]:.0f} on"
    else:
        last = f"{scientific(norms[-1])} at lag {lags[-1]:.0f}"
    said = [f"Gain of the full chain: {last}; the error of its log10 is {_errors_said(part)}.", *error]
    said += outside_said({one.name: one.norms for one in lines}, ends)
    if any(one.name == _LOSS for one in lines):
        said.append("The loss has no gain: its line is |dL/ds| over that at lag 0.")
    if len(chains_of(part)) > 1:
        said.append("The line of a path alone is an upper bound where it is below the vanishing threshold.")
    if len(part["profile"]["log10_norm"]) > 1:
        said.append(f"Lines are medians of the batch{', the grey area its range' if area else ''}.")
    if len(chains_of(part)) + ("loss" in part) > len(lines):
        said.append(f"Of {len(part['chains'])} chains the {len(lines)} that carry most.")
    return " ".join(said)
