"""The result as one HTML file: no script, nothing from elsewhere, fit for screen, print and ear."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.errors import InputError, counted
from gradscope.report.gain_words import gain_in, gain_lost, gain_told, gains_by_lag
from gradscope.report.html_remedies import remedies_section
from gradscope.report.html_style import style_sheet
from gradscope.report.html_text import (
    beginning,
    contents,
    error_of,
    figures_of,
    folded,
    listing,
    table,
    titled,
    unbroken,
)
from gradscope.report.html_training import asked_sections
from gradscope.report.html_words import CARRIER, SIGNS, TERMS, explained, linked, reading, sign_of
from gradscope.report.next_steps import next_steps
from gradscope.report.pictures.figures import picture
from gradscope.report.pictures.heatmap import maps_of
from gradscope.report.pictures.parts import floats, of_result, parts_of, sentence
from gradscope.report.pictures.svg import element, escaped, short
from gradscope.report.subject import subject
from gradscope.report.verdict import scientific
from gradscope.report.views import Look

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis

# Rows of a table of exact numbers, and names in a list of them.
_ROWS, _NAMES = 24, 40
# Bytes of a page without its data: what is left of these goes to the sections of the layers.
_BUDGET = 299_500
_LEVELS = ("vanishing", "stable", "exploding", "undecided")


def render_html(analysis: Analysis, look: Look) -> str:
    """The page of an analysis."""
    return html_page(analysis.to_dict(all_lags=look.all_lags), look.origin, embed=look.embed_data)


def html_page(result: Mapping[str, Any], origin: Mapping[str, str] = {}, *, embed: bool = False) -> str:
    """The page of an analysis' JSON.

    origin : what else there is to say of where it came from, such as the command; embed : with the JSON.
    Raises InputError where the JSON is not that of an analysis.
    """
    with of_result():
        whole, end = [*_whole(result)], _provenance(result, origin)
        title, said = f"{_level(result)}: {_subject(result)}", sentence(result)
        room = _BUDGET - _bytes(document(title, said, [*whole, end]))
        parts = [*whole, *_layers(result, room), end, _data(result, embed)]
        return document(title, said, parts)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def document(title: str, description: str, parts: Sequence[str]) -> str:
    """A page that may load nothing, and whose one style sheet is known by its hash.

    parts : what comes first is said of the whole; its contents stand before the first section.
    """
    style = style_sheet()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="generator" content="gradscope">',
        f'<meta name="description" content="{beginning(description)}">',
        element("title", escaped(f"gradscope: {title}")),
        f"<style>{style}</style>",
    )
    shown = [part for part in parts if part]
    first = next((place for place, part in enumerate(shown) if "<h2" in part), len(shown))
    body = element("body", element("main", "\n".join([*shown[:first], contents(shown), *shown[first:]])))
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


# -- what is said of the whole -------------------------------------------------------------------------


def _subject(part: Mapping[str, Any]) -> str:
    return subject(part["problem"], len(part.get("layers") or ()), part["chains"][0]["size"])


def _level(part: Mapping[str, Any]) -> str:
    return str(part["verdict"]["level"])


def _whole(result: Mapping[str, Any]) -> Iterator[str]:
    """The verdict, what to do, and the sections in the order in which they are asked for."""
    level = _level(result)
    known = level if level in _LEVELS else "undecided"
    gain = gain_in(result["chains"][0])
    word = element("span", escaped(level), class_=f"level {known}")
    yield element("h1", sign_of(known), word, unbroken(f": {_subject(result)}, gain {gain}"))
    yield _key(result)
    yield listing(result["verdict"]["reasons"])
    notes = result["verdict"].get("notes") or []
    if notes:
        yield titled("What to know, and what to do")
        yield listing(notes)
    problem = result["problem"]
    yield listing([f"{words}: {said}" for key, words in _SAID.items() for said in problem.get(key) or []])
    if next_ := listing(_next(result)):
        yield titled("Next")
        yield next_
    yield from remedies_section(result)
    yield _sections(result, "whole")
    yield element("div", *asked_sections(result), class_="grid")


def _key(result: Mapping[str, Any]) -> str:
    """The few numbers that are looked for first."""
    full = result["chains"][0]
    steps = (result["profile"]["lag"] or [result["problem"]["steps"]])[-1]  # of the cell view one less
    facts = {
        "horizon": f"{figures_of(full['horizon']['median'], 'g')} of {counted(steps, 'step')}",
        "rate": f"{figures_of(full['rate']['median'], '+.4f')} nats/step",
    }
    shares = {name: share for name, share in result["shares"].items() if share is not None}
    if len(shares) > 1:
        first = max(shares, key=lambda name: abs(shares[name]))
        facts[CARRIER] = f"{short(first)}, {100 * shares[first]:.0f} %"
    each = (
        element("div", element("dt", linked(name)), element("dd", escaped(value)))
        for name, value in facts.items()
    )
    return element("dl", *each, class_="key")


def _next(result: Mapping[str, Any]) -> list[str]:
    names = [str(chain["name"]) for chain in result["chains"]]
    tau, rate = result["thresholds"]["vanishing_below"], result["chains"][0]["rate"]["median"]
    known = {"gates": result["gates"], "tried": "suggestions" in result, "rms": _known_rms(result)}
    return list(next_steps(result["problem"], _level(result), tau, names, rate, **known))


_SAID = {"not_applied": "Not applied", "assumed": "Assumed"}


def _sections(part: Mapping[str, Any], name: str) -> str:
    """The pictures of the whole, or of a layer, with their numbers."""
    yields = (
        _figure(part, "lag", name, _chains(part) + _lag_table(part)) or _chains(part),
        _figure(part, "share", name, _share_table(part)),
        _figure(part, "heatmap", name, _heatmap_tables(part)),
        _figure(part, "spectrum", name, _spectrum_table(part)),
        _figure(part, "gates", name, _gates_table(part)),
        _figure(part, "eigenvalues", name, _matrix_table(part)),
    )
    return element("div", *yields, class_="grid")


def _figure(part: Mapping[str, Any], name: str, where: str, numbers: str) -> str:
    """A picture with its heading, what it says, and its numbers; nothing where there is none to draw."""
    try:
        drawn = picture(part, name, "page" if where == "whole" else "small")
    except InputError:
        return ""
    return element(
        "figure",
        titled(drawn.title) if where == "whole" else element("h3", escaped(drawn.title)),
        drawn.svg(f"{where}-{name}", inside=True),
        element("figcaption", unbroken(drawn.said)),
        reading(name) if where == "whole" else "",
        folded("Exact numbers", numbers) if numbers else "",
    )


# -- tables --------------------------------------------------------------------------------------------


def _chains(part: Mapping[str, Any]) -> str:
    rows = [
        (
            chain["name"],
            gain_in(chain),
            *([_rms(chain)] if _known_rms(part) else []),
            figures_of(chain["horizon"]["median"], "g"),
            chain["verdict"],
            figures_of(chain["rate"]["median"], "+.4f"),
            error_of(max(chain["log10_error"], default=None)),
        )
        for chain in part["chains"][:_NAMES]
    ]
    rms = ("rms gain",) if _known_rms(part) else ()
    headings = (
        *("chain", "gain", *rms, "horizon, steps"),
        *("verdict", "rate, nats/step", "worst error, decades"),
    )
    caption = "Chains: the full one, and each path alone" if len(rows) > 1 else "The chain"
    return table(caption, headings, rows)


def _known_rms(part: Mapping[str, Any]) -> bool:
    """Where all values were computed: of a random direction's gain."""
    return any("log10_rms" in chain for chain in part["chains"])


def _rms(chain: Mapping[str, Any]) -> str:
    return gain_told(chain["log10_rms"]["median"], lost=gain_lost(chain)) if "log10_rms" in chain else "–"


def _some(count: int) -> list[int]:
    """Places of the rows shown: all, or some, evenly in the logarithm, the first and the last with them."""
    if count <= _ROWS:
        return [*range(count)]
    return [int(k) - 1 for k in np.unique(np.geomspace(1, count, _ROWS).round())]


def _lag_table(part: Mapping[str, Any]) -> str:
    chains = [chain for chain in part["chains"] if chain.get("by_lag")][:8]
    lags = part["profile"]["lag"]
    if not chains or not lags:
        return ""
    known = [gains_by_lag(one) for one in chains]
    told = part["profile"].get("error") or {"lag": [], "log10_norm": []}
    errors = dict(zip(told["lag"], told["log10_norm"], strict=True))
    places = sorted({*_some(len(lags)), *(k for k, lag in enumerate(lags) if lag in errors)})
    rows = [
        (
            *(lags[k], *(one.get(lags[k], "–") for one in known)),
            *([error_of(errors.get(lags[k]))] if errors else []),
        )
        for k in places
    ]
    headings = ("lag", *(one["name"] for one in chains), *(["error of full, decades"] if errors else []))
    return table("Gain by lag, medians of the batch", headings, rows)


def _share_table(part: Mapping[str, Any]) -> str:
    lags, share = part["profile"]["lag"], dict([*part["profile"]["share"].items()][:8])
    if not lags:
        return ""
    rows = [
        (lags[k], *(figures_of(None if one[k] is None else 100 * one[k], ".2f") for one in share.values()))
        for k in _some(len(lags))
    ]
    mean = [figures_of(None if s is None else 100 * s, ".2f") for s in map(part["shares"].get, share)]
    return table("Shares in percent, by lag", ("lag", *share), [("mean", *mean), *rows])


def _heatmap_tables(part: Mapping[str, Any]) -> str:
    """Of each map some columns: where it is largest, how the units differ; --embed-data has the others."""
    made = []
    for name, told in maps_of(part).items():
        steps, units = told["step"], told["unit"]
        places = (-1 - k for k in _some(len(steps)))
        rows = [_column(steps[k], [row[k] for row in told["log10"]], units) for k in places]
        of = f", {short(name)}" if name else ""
        headings = ("step", "largest", "in unit", "median of the units", "smallest", "units at 0 or lost")
        made.append(table(f"Gradient by step, from the last on{of}", headings, rows))
    return "".join(made)


def _column(step: int, values: Sequence[float | None], units: Sequence[int]) -> tuple[object, ...]:
    """A row of the table."""
    known = floats(values)
    some = known[np.isfinite(known)]
    if not len(some):
        return (step, "0 or lost", "–", "0 or lost", "–", len(known))
    middle = float(np.median(np.nan_to_num(known, nan=-np.inf)))
    largest = int(np.nanargmax(known))
    median = scientific(middle) if np.isfinite(middle) else "0 or lost"
    return (
        *(step, scientific(float(some.max())), units[largest]),
        *(median, scientific(float(some.min())), len(known) - len(some)),
    )


def _spectrum_table(part: Mapping[str, Any]) -> str:
    full = part["chains"][0]
    values = full["log10_singular_values"][0]
    counted = [0 if full.get("unmeasured") else values.count(None)]  # where slopes may have counted as 0
    zeros = full.get("exact_zeros", counted)[0]
    told = [gain_told(value, lost=k < len(values) - zeros) for k, value in enumerate(values)]
    rows = [(k + 1, told[k], figures_of(values[k], ".12g")) for k in _some(len(values))]
    return table("Singular values of the full chain, first sequence", ("i", "sigma_i", "log10"), rows)


def _gates_table(part: Mapping[str, Any]) -> str:
    rows = [
        (f"{name} {gate}".strip(), f"{one['mean']:.4f}", f"{100 * one['saturated']:.2f} %", *_sides(one))
        for name, inside in parts_of(part)
        for gate, one in inside["gates"].items()
    ]
    headings = ("gate", "mean", "saturated", "below 0.1", "above 0.9")
    return table("Gates", headings, rows[:_NAMES]) if rows else ""


def _sides(gate: Mapping[str, Any]) -> tuple[str, str]:
    """How much of a gate is saturated on either side."""
    bars = gate.get("histogram") or []
    return (f"{100 * sum(bars[:2]):.2f} %", f"{100 * sum(bars[-2:]):.2f} %") if bars else ("–", "–")


def _matrix_table(part: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{name} {one['name']}".strip(),
            figures_of(one["spectral_norm"], ".6g"),
            figures_of(one["spectral_radius"], ".6g"),
            figures_of(one["singular_values"][-1], ".3e"),
        )
        for name, inside in parts_of(part)
        for one in inside["matrices"]
    ]
    headings = ("matrix", "spectral norm", "spectral radius", "smallest singular value")
    return table("Recurrent matrices", headings, rows[:_NAMES]) if rows else ""


# -- layers, and where it came from --------------------------------------------------------------------


def _layers(result: Mapping[str, Any], room: int) -> Iterator[str]:
    """The layers of a stack side by side, then each of as many as there is room for, in bytes."""
    layers = result.get("layers") or []
    if not layers:
        return
    rows = [
        (
            f"layer{place}",
            layer["problem"]["layer"],
            layer["problem"]["cell"],
            layer["problem"]["hidden"],
            gain_in(layer["chains"][0]),
            figures_of(layer["chains"][0]["rate"]["median"], "+.4f"),
            figures_of(layer["chains"][0]["horizon"]["median"], "g"),
            _level(layer),
        )
        for place, layer in enumerate(layers[:_NAMES])
    ]
    headings = ("layer", "name", "cell", "hidden", "gain", "rate, nats/step", "horizon, steps", "verdict")
    numbers = table("Each layer on its own", headings, rows)
    beside = _figure(result, "layers", "whole", numbers)
    if not beside or _bytes(beside) > room:
        beside = titled("Layers side by side") + numbers
    yield beside
    room -= _bytes(beside)
    for place, layer in enumerate(layers):
        name = f"layer{place}"
        section = folded(
            f"{SIGNS.get(_level(layer), '')} {name}: {_subject(layer)}: {_level(layer)}",
            listing([*layer["verdict"]["reasons"], *(layer["verdict"].get("notes") or [])]),
            _sections(layer | {"gates": {}, "matrices": []}, name),
        )
        room -= _bytes(section)
        if room < 0:
            said = f"From {name} on there is no room for pictures of each: gradscope plot --layer draws them."
            yield element("p", escaped(said), class_="quiet")
            return
        yield section


def _provenance(result: Mapping[str, Any], origin: Mapping[str, str]) -> str:
    """The settings, thresholds, versions, and what the command line knows of the file."""
    facts = {**origin, "gradscope": result.get("gradscope", ""), "schema": result["schema"]}
    facts |= {key: value for key, value in result["problem"].items() if key not in _SAID}
    facts |= result["thresholds"]
    rows = [(key, _plain(value)) for key, value in facts.items() if value not in (None, "", [], {})]
    terms = [term for term in TERMS if term != CARRIER or len(result["shares"]) > 1]
    made = table("What was analysed, and with what", ("setting", "value"), rows[: 2 * _NAMES])
    return element("section", explained(terms), titled("Provenance"), made, class_="facts")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)[:200]


def _data(result: Mapping[str, Any], embed: bool) -> str:
    """The JSON as data, which no browser runs; nothing in it ends the element."""
    if not embed:
        return ""
    text = json.dumps(result, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return f'<script type="application/json" id="gradscope-result">{text}</script>'
