"""How open the gates are: a histogram for each, with what is saturated at its sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscope.errors import InputError
from gradscope.report.pictures.frame import Axis, words
from gradscope.report.pictures.panels import MOST_PANELS, panels
from gradscope.report.pictures.parts import floats
from gradscope.report.pictures.picture import Picture
from gradscope.report.pictures.svg import element, short
from gradscope.report.pictures.theme import Size, fill, stroke

_SATURATED = (0.1, 0.9)


def draw_gates(parts: Mapping[str, Mapping[str, Any]], size: Size) -> Picture:
    """parts : the layers whose gates are drawn, {name or "": part}."""
    gates = [
        (f"{layer} {name}".strip(), gate)
        for layer, part in parts.items()
        for name, gate in part["gates"].items()
        if gate.get("histogram")
    ][:MOST_PANELS]
    if not gates:
        raise InputError("the result has no gates: the cell has none, or it is of --only or gradscope chain")
    size, frames = panels(len(gates), size, 1.5)
    drawn = []
    for (name, gate), frame in zip(gates, frames, strict=True):
        bars = floats(gate["histogram"])
        x, y = frame.axes((0.0, 1.0), (0.0, max(float(bars.max()), 1e-9)))
        drawn += [*_heading(name, gate, frame), *_bars(bars.tolist(), x, y)]
        drawn.append(element("line", x1=x.start, y1=y.start, x2=x.end, y2=y.start, **stroke("muted")))
        for tick in (0.0, 0.5, 1.0):
            drawn.append(
                words(f"{tick:g}", x.at(tick), y.start + 1.2 * frame.font, frame.font, anchor="middle")
            )
    return Picture("Gates", _said(gates), size, tuple(drawn))


def _heading(name: str, gate: Mapping[str, Any], frame: Any) -> list[str]:
    said = f"mean {gate['mean']:.2f}, saturated {100 * gate['saturated']:.1f} %"
    small = 0.85 * frame.font
    return [
        words(short(name), frame.left, frame.top - 1.5 * frame.font, frame.font, bold=True),
        words(said, frame.left, frame.top - 0.4 * frame.font, small, "muted"),
    ]


def _bars(bars: list[float], x: Axis, y: Axis) -> list[str]:
    """Those of saturated activations in the second colour, and with an outline."""
    found = []
    for k, bar in enumerate(bars):
        low, high = k / len(bars), (k + 1) / len(bars)
        saturated = high <= _SATURATED[0] + 1e-9 or low >= _SATURATED[1] - 1e-9
        found.append(
            element(
                "rect",
                element("title", f"{low:.2f} to {high:.2f}: {100 * bar:.1f} %"),
                x=x.at(low) + 0.4,
                y=y.at(bar),
                width=x.at(high) - x.at(low) - 0.8,
                height=y.start - y.at(bar),
                **fill(2 if saturated else 1),
            )
        )
    return found


def _said(gates: list[tuple[str, Any]]) -> str:
    each = [
        f"{short(name)} mean {gate['mean']:.3f}, saturated {100 * gate['saturated']:.1f} %"
        for name, gate in gates
    ]
    return f"Histograms of gate activations, saturated below 0.1 and above 0.9: {'; '.join(each)}."
