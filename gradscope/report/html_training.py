"""What was asked for beside the chains, as tables of the page: paths left out, loss, masks, sensitivity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradscope.cells.notation import is_recurrent
from gradscope.errors import counted
from gradscope.report.gain_words import gain_in, gain_lost, gain_told
from gradscope.report.html_text import figures_of, folded, table, titled, unbroken
from gradscope.report.pictures.svg import element

# Rows of a table; of a table of weights that is shown whole.
_ROWS, _AT_ONCE = 60, 16


def asked_sections(part: Mapping[str, Any]) -> Iterator[str]:
    """Each a heading, a table, and what it is of; nothing where nothing of it was asked for."""
    yield from _without(part.get("without") or {})
    if loss := part.get("loss"):
        yield from _gradients(loss)
        yield from _clip(loss.get("clip"))
        yield from _truncation(loss.get("tbptt"))
    yield from _masks(part.get("masks"), part["chains"][0])
    if found := part.get("sensitivity"):
        yield from _sensitivities(found, "log10 gain")
        if found.get("loss"):
            yield from _sensitivities(found["loss"], "log10 |dL/ds_0|")


def _section(title: str, made: str, said: str) -> str:
    return element("section", titled(title), made, element("p", unbroken(said), class_="quiet"))


def _of_weights(caption: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with a row for every weight; of many the recurrent matrices', and the whole is folded."""
    if len(rows) <= _AT_ONCE:
        return table(caption, headings, rows)
    recurrent = [row for row in rows if is_recurrent(str(row[0]))]
    first = table(f"{caption}, recurrent matrices", headings, recurrent) if recurrent else ""
    return first + folded("All of them", table(caption, headings, rows))


def _without(chains: Mapping[str, Any]) -> Iterator[str]:
    if not chains:
        return
    rows = [
        (
            name,
            gain_in(one),
            figures_of(one["horizon"]["median"], "g"),
            one["verdict"],
        )
        for name, one in [*chains.items()][:_ROWS]
    ]
    made = table("The whole chain but for one path", ("without", "gain", "horizon, steps", "verdict"), rows)
    yield _section("Without each path", made, "Along the same states: what is left where that path is cut.")


def _gradients(loss: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (
            one["name"],
            gain_told(one["log10_norm"], lost=bool(loss.get("unmeasured"))),
            _percent(one.get("share")),
            *(figures_of((one.get("reach") or {}).get(name), "g") for name in ("half", "most")),
        )
        for one in (loss.get("gradients") or [])[:_ROWS]
    ]
    if rows:
        headings = ("matrix", "norm", "share", "half by lag", "99 % by lag")
        made = _of_weights("Weight gradients of the loss", headings, rows)
        said = "The lag by which half and 99 % of each gradient has come together."
        yield _section("What the loss sends back", made, said)


def _clip(clip: Mapping[str, Any] | None) -> Iterator[str]:
    if clip is None:
        return
    rows = [
        (name, *(figures_of(clip[name][which], ".3g") for which in ("median", "min", "max")))
        for name in ("factor", "cosine")
    ]
    made = table(
        f"{clip['law']}, at {clip['threshold']:g}", ("of sequences", "median", "least", "most"), rows
    )
    said = (
        f"It acts on {_percent(clip['clipped_proportion'])} of the sequences; a threshold of "
        f"{figures_of(clip['suggested'], '.3g')} would leave nine tenths of them as they are."
    )
    yield _section("Gradient clipping", made, said)


def _truncation(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    rows = [
        (
            name,
            _percent(one["bias"]),
            figures_of(one["cosine"], ".3g"),
            figures_of(one["length_for_1_percent"], "g"),
            _percent(one["chunked"]["bias"]),
        )
        for name, one in found["parameters"].items()
    ]
    headings = ("weights", "bias", "cosine", "1 % needs, steps", "chunked bias")
    made = table(f"Every loss followed back {counted(found['length'], 'step')}", headings, rows)
    said = "Bias |G - G_K| / |G|, exact over the steps at hand; chunked: states detached every so many steps."
    yield _section("Truncated BPTT", made, said)


def _masks(masks: Mapping[str, Any] | None, full: Mapping[str, Any]) -> Iterator[str]:
    if masks is None:
        return
    each = (("none", full), ("mean", masks["mean"]), (f"{masks['count']} drawn", masks))
    spread = " to ".join(gain_told(one, lost=gain_lost(masks)) for one in masks["log10_spread"])
    rows = [
        (
            name,
            gain_in(one),
            spread if one is masks else "",
            figures_of(one["horizon"]["median"], "g"),
        )
        for name, one in each
    ]
    probability = ", ".join(f"{p:g}" for p in masks["probability"])
    made = table("The gain with masks of training", ("masks", "gain", "spread", "horizon, steps"), rows)
    said = f"Masks of {masks['law']}, probability {probability}; medians, spread from 5 to 95 %."
    yield _section("Masks that training draws", made, said)


def _sensitivities(found: Mapping[str, Any], of: str) -> Iterator[str]:
    said = (
        "Decades: elasticity for a parameter ten times as large, at this rate; all + 1 for 1 added to every "
        "entry; norm of the derivative, per unit; error of the elasticity. Of small changes, with which the "
        "states move."
    )
    yield _section(f"Sensitivity of {of}", _derivatives(found["total"], of), said)
    if windowed := found.get("windowed"):
        title = f"Sensitivity of {of}, of windows of {counted(found['window'], 'step')}"
        said = "Another number, not of the whole: the state before each window is held as it is."
        yield _section(title, _derivatives(windowed, f"{of} of windows"), said)


def _derivatives(of_each: Mapping[str, Any], of: str) -> str:
    rows = [
        (name, *(figures_of(one.get(key), form) for key, form in _DERIVATIVES.values()))
        for name, one in [*of_each.items()][:_ROWS]
    ]
    return _of_weights(f"How {of} changes with each parameter", ("parameter", *_DERIVATIVES), rows)


_DERIVATIVES = {
    "elasticity": ("elasticity", "+.3g"),
    "all + 1": ("shift", "+.3g"),
    "norm": ("norm", ".3g"),
    "error": ("elasticity_error", ".0e"),
}


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.3g} %"
