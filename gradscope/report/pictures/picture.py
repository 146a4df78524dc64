"""A picture: what is drawn, and what it says to those who do not see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradscope.custom_types import PathLike
from gradscope.report.pictures.svg import element, escaped
from gradscope.report.pictures.theme import Size, fill

_FONTS = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Picture:
    """An SVG; notebooks show it.

    title : a heading; before : what those who do not see it are told first; said : what there is to see.
    """

    title: str
    before: str
    said: str
    size: Size
    parts: tuple[str, ...]

    def svg(self, name: str = "gradscope", *, inside: bool = False) -> str:
        """The SVG; inside : as a part of an HTML page, in which ``name`` makes its identifiers its own."""
        width, height = self.size.width, self.size.height
        paper = element("rect", width=width, height=height, **fill("paper"))
        return element(
            "svg",
            element("title", escaped(self.title), id=f"{name}-title"),
            element("desc", escaped(f"{self.before} {self.said}"), id=f"{name}-desc"),
            *(() if inside else (paper,)),
            *self.parts,
            xmlns=None if inside else "http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:.2f} {height:.2f}",
            width=None if inside else width,
            height=None if inside else height,
            font_family=_FONTS,
            role="img",
            aria_labelledby=f"{name}-title {name}-desc",
        )

    def save(self, path: PathLike) -> None:
        """Write the SVG to a file."""
        Path(path).write_text(str(self), "utf-8")

    def __str__(self) -> str:
        return self.svg() + "\n"

    def __repr__(self) -> str:
        return f"<Picture {self.title}: {self.said}>"

    def _repr_svg_(self) -> str:
        return self.svg()
