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
    return f"<{tag}{given}>{''.join(children)}</{tag}>"


def escaped(text: object) -> str:
    """Text as XML has it: no mark-up, no control characters, no halves of characters."""
    return html.escape(shown(text))


def short(name: object, most: int = _NAME) -> str:
    """A name that fits into a picture: its beginning where it has more characters."""
    plain = shown(name)
    return plain if len(plain) <= most else plain[: max(most - 1, 1)] + "…"


def both_ends(name: object, most: int) -> str:
    """A name whose middle is left out where it has more characters: of layers the end tells them apart."""
    plain = shown(name)
    end = max(most - 1, 2) // 2
    return plain if len(plain) <= most else f"{plain[: max(most - 1 - end, 1)]}…{plain[-end:]}"


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return "0" if abs(value) < 0.05 else f"{value:.1f}".removesuffix(".0")


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else escaped(value)
