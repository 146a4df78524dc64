"""How open the gates are: a histogram for each, with what is saturated at its sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscope.errors import InputError
from gradscope.report.pictures.axis import Axis
from gradscope.report.pictures.frame import words
from gradscope.report.pictures.panels import MOST_PANELS, called, heading, panels
from gradscope.report.pictures.parts import floats
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element
from gradscope.report.pictures.theme import Size, fill, stroke

_SATURATED = (0.1, 0.9)


def draw_gates(parts: Mapping[str, Mapping[str, Any]], size: Size) -> Picture:
    """parts : the layers whose gates are drawn, {name or "": part}."""
    gates = [
        (layer, name, gate)
        for layer, part in parts.items()
        for name, gate in part["gates"].items()
        if gate.get("histogram")
    ][:MOST_PANELS]
    if not gates:
        raise InputError("the result has no gates: the cell has none, or it is of --only or gradscope chain")
    size, frames = panels([layer for layer, _, _ in gates], size, 1.5)
    drawn = []
    for (layer, name, gate), frame in zip(gates, frames, strict=True):
        bars = floats(gate["histogram"])
        x, y = frame.axes((0.0, 1.0), (0.0, max(float(bars.max()), 1e-9)))
        mean, saturated = f": mean {gate['mean']:.2f}", f"saturated {100 * gate['saturated']:.1f} %"
        drawn += [*heading(layer, name, mean, saturated, frame), *_bars(bars.tolist(), x, y)]
        drawn.append(element("line", x1=x.start, y1=y.start, x2=x.end, y2=y.start, **stroke("muted")))
        for tick in (0.0, 0.5, 1.0):
            drawn.append(
                words(f"{tick:g}", x.at(tick), y.start + 1.2 * frame.font, frame.font, anchor="middle")
            )
    said = "Histograms of gate activations, in another colour the saturated ones below 0.1 and above 0.9."
    return Picture("Gates", _said(gates), said, size, tuple(drawn))


def _bars(bars: list[float], x: Axis, y: Axis) -> list[str]:
    """Those of saturated activations in another colour."""
    found: dict[int, list[str]] = {1: [], 2: []}
    for k, bar in enumerate(bars):
        low, high = k / len(bars), (k + 1) / len(bars)
        saturated = high <= _SATURATED[0] + 1e-9 or low >= _SATURATED[1] - 1e-9
        box = {"x": x.at(low) + 0.4, "width": x.at(high) - x.at(low) - 0.8}
        box |= {"y": y.at(bar), "height": y.start - y.at(bar)}
        if bar:
            found[2 if saturated else 1].append(element("rect", **box))
    return [element("g", *boxes, **fill(colour)) for colour, boxes in found.items() if boxes]


def _said(gates: list[tuple[str, str, Any]]) -> str:
    each = [
        f"{called(layer, name)} mean {gate['mean']:.3f}, saturated {100 * gate['saturated']:.1f} %"
        for layer, name, gate in gates
    ]
    return f"{'; '.join(each)}."
