"""Pieces of an HTML page: elements with their texts escaped, tables with headings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from gradscope.report.pictures.svg import element, escaped
from gradscope.report.verdict import error_figures

# Characters of a sentence or name; sentences of a list.
_LONGEST, _MOST = 2000, 60
# Characters of a cell of a table that stand on one line.
_LINE = 28


def figures_of(value: float | None, form: str) -> str:
    """A number in this form, a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def error_of(decades: float | None) -> str:
    """An error from JSON, a dash where there is none."""
    return "–" if decades is None else error_figures(decades)


def beginning(text: object) -> str:
    """Text escaped; of one that is no sentence any more, as a stranger's file may have, the beginning."""
    plain = str(text)
    return escaped(plain if len(plain) <= _LONGEST else plain[:_LONGEST] + "…")


# Numbers, options and blocks (0->1, escaped), which browsers would break after their hyphen.
_ONE_WORD = re.compile(r"\d[\d.]*e[+-]\d+|--[a-z][a-z-]*|\d+-&gt;\d+")


def unbroken(text: object) -> str:
    """Text escaped, its numbers and options each on one line."""
    return _ONE_WORD.sub(r'<span class="one">\g<0></span>', beginning(text))


def titled(title: str) -> str:
    """The heading of a section, which the contents of the page lead to."""
    place = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
    return element("h2", escaped(title), id=f"section-{place}")


_HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)</h2>')
# Sections below which a page is its own list of contents.
_FEW = 3


def contents(parts: Sequence[str]) -> str:
    """Links to the sections of a page; nothing where these are few."""
    found = [one for part in parts for one in _HEADING.findall(part)]
    links = [element("li", element("a", title, href=f"#{place}")) for place, title in found]
    if len(links) <= _FEW:
        return ""
    return element("nav", element("ul", *links), class_="contents", aria_label="Contents")


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that can be scrolled sideways, its first column the headings of the rows."""
    head = element("tr", *(element("th", beginning(name), scope="col") for name in headings))
    body = [
        element(
            "tr",
            element("th", beginning(first), scope="row", class_=_long(first)),
            *(_cell(cell) for cell in cells),
        )
        for first, *cells in rows
    ]
    inside = element(
        "table",
        element("caption", escaped(caption)),
        element("thead", head),
        element("tbody", *body),
    )
    return element("div", inside, class_="wide", tabindex=0, role="group", aria_label=caption)


def _cell(cell: object) -> str:
    long = _long(cell)
    return element("td", unbroken(cell) if long else beginning(cell), class_=long)


def _long(cell: object) -> str | None:
    """The class of what is broken into lines; numbers and usual names stand on one."""
    return "long" if len(str(cell)) > _LINE else None


def folded(summary: str, *inside: str) -> str:
    """What is shown when its heading is clicked."""
    return element("details", element("summary", escaped(summary)), *inside)


def listing(sentences: Sequence[object]) -> str:
    """A list of sentences, nothing where there is none."""
    items = [element("li", unbroken(sentence)) for sentence in sentences[:_MOST]]
    return element("ul", *items) if items else ""


def origin_section(origin: Mapping[str, str]) -> str:
    """What the command line knows of where a page came from; nothing where that is nothing."""
    if not origin:
        return ""
    made = table("What the page was made of, and with what", ("what", "value"), [*origin.items()])
    return element("section", titled("Provenance"), made, class_="facts")
