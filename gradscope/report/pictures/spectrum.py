"""The singular values of the whole product, in their order, a line for every chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope.errors import InputError
from gradscope.report.pictures.axis import spread
from gradscope.report.pictures.frame import (
    Frame,
    Legend,
    line,
    margin_of_decades,
    outside_said,
    stretches,
    thinned,
    unseen,
    with_paths,
)
from gradscope.report.pictures.parts import chains_of, colours_of, floats, sentence
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, escaped
from gradscope.report.pictures.theme import COLOURS, Size
from gradscope.report.verdict import error_figures, scientific

# Values that are dots as well as a line; sequences of a batch that are drawn.
_DOTS, _SEQUENCES = 24, 16


def draw_spectrum(part: Mapping[str, Any], size: Size) -> Picture:
    """log10 of sigma_i against i: of the full chain every sequence, of the paths the first."""
    full, colours = part["chains"][0], colours_of(part)
    places = {0 if one is full else colours[one["name"]]: one for one in chains_of(part) if _some(one)}
    chains = {place: places[place] for place in sorted(places) if place < COLOURS}
    if 0 not in chains:
        raise InputError("no singular value of the full chain is above zero: there is nothing to draw")
    if max(map(len, chains[0]["log10_singular_values"])) < 2:
        raise InputError("the result has one singular value, the gain: analyse with --top all for the others")
    rows = {
        k: [floats(row) for row in chain["log10_singular_values"][: 1 if k else _SEQUENCES]]
        for k, chain in chains.items()
    }
    of_full = np.concatenate(rows[0])
    low, high = with_paths(
        spread(np.append(of_full[np.isfinite(of_full)], 0.0), 1.0),
        np.concatenate([row for some in rows.values() for row in some]),
    )
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    seen = {k: one["name"] for k, one in chains.items() if not unseen(np.concatenate(rows[k]), (low, high))}
    legend = Legend([(name, k) for k, name in seen.items()], size.width - 2 * size.font, size.font)
    left = margin_of_decades(low, high, size.font) + 0.6 * size.font
    bottom = size.height - 3.4 * size.font - legend.height
    frame = Frame(left, 2.2 * size.font, size.width - size.font, bottom, size.font)
    x, y = frame.axes(spread([1.0, float(max(map(len, rows[0])))], 1.0), (low, high))
    drawn = []
    for k in reversed(rows):
        inside = []
        for row in rows[k]:
            for run in stretches(*thinned(np.arange(1.0, len(row) + 1), row, size.points), low, high):
                points = [(x.at(a), y.at(b)) for a, b in run]
                inside.append(line(points, k, width=1.2 if k else 1.8))
                if not k and len(row) <= _DOTS:
                    inside += [line([point], k, width=2.4) for point in points]
        drawn.append(element("g", element("title", escaped(chains[k]["name"])), *inside))
    titles = ("i, from the largest to the smallest", "singular value sigma_i of the whole product")
    parts = (
        frame.drawn(x, y, titles, log_y=True, whole_x=True),
        *drawn,
        legend.drawn(size.font, frame.bottom + 3.1 * size.font),
    )
    gone = {one["name"]: np.concatenate(rows[k]) for k, one in chains.items() if k not in seen}
    said = [*_said(part, rows[0]), *outside_said(gone, (low, high))]
    return Picture("Singular values", sentence(part), " ".join(said), size, parts)


def _some(chain: Mapping[str, Any]) -> bool:
    return any(value is not None for row in chain["log10_singular_values"] for value in row)


def _said(part: Mapping[str, Any], rows: list[Any]) -> list[str]:
    full, first = part["chains"][0], rows[0]
    known = first[np.isfinite(first)]
    said = []
    if len(known):
        ends = f"{scientific(float(known[0]))} to {scientific(float(known[-1]))}"
        zeros = max(full.get("exact_zeros") or [0])
        count = len(known) + (zeros if len(known) + zeros <= len(first) else 0)
        said.append(f"{count} of {full['size']} singular values, from {ends}.")
        said.append(f"The worst is known to {error_figures(max(full['log10_error']))} decades.")
    if (zeros := full.get("exact_zeros")) and max(zeros):
        are = "is" if max(zeros) == 1 else "are"
        said.append(f"{max(zeros)} {are} zero, and below the picture.")
    if full.get("unmeasured"):
        said.append(f"{full['unmeasured']}.")
    if len(full["log10_singular_values"]) > 1:
        paths = "; of the paths the first" if len(chains_of(part)) > 1 else ""
        said.append(f"{len(rows)} of {len(full['log10_singular_values'])} sequences{paths}.")
    return said
