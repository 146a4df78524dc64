"""SVG as text: elements whose attributes and texts are escaped, whatever a stranger's file called them."""

from __future__ import annotations

import html

from gradscope.errors import shown

# Characters of a name in a picture; the tables beside it have the whole.
_NAME = 24


def element(tag: str, *children: str, **attributes: object) -> str:
    """``element("text", escaped("x"), font_size=8)``; children are SVG already, None is left out."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    return f"<{tag}{given}>{inside}</{tag}>" if inside else f"<{tag}{given}/>"


def escaped(text: object) -> str:
    """Text as XML has it: no mark-up, no control characters, no halves of characters."""
    return html.escape(shown(text))


def short(name: object) -> str:
    """A name that fits into a picture."""
    plain = shown(name)
    return plain if len(plain) <= _NAME else plain[: _NAME - 1] + "…"


def number(value: float) -> str:
    """A coordinate, to a hundredth of a pixel."""
    return "0" if abs(value) < 5e-3 else f"{value:.2f}".rstrip("0").rstrip(".")


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else escaped(value)
