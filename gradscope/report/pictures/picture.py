"""A picture: what is drawn, and what it says to those who do not see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradscope.custom_types import PathLike
from gradscope.errors import InputError, listed, quoted
from gradscope.files import write_whole
from gradscope.report.pictures.converted import pdf, png, points
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

    def svg(self, name: str = "gradscope", *, inside: bool = False, printed: bool = False) -> str:
        """The SVG; inside : as a part of an HTML page, in which ``name`` makes its identifiers its own.

        printed : its size in points instead of pixels.
        """
        width, height = self.size.width, self.size.height
        pixels = [side * self.size.zoom for side in (width, height)]
        shown = [points(side) if printed else side for side in pixels]
        paper = element("rect", width=width, height=height, **fill("paper"))
        return element(
            "svg",
            element("title", escaped(self.title), id=f"{name}-title"),
            element("desc", escaped(f"{self.before} {self.said}".strip()), id=f"{name}-desc"),
            *(() if inside else (paper,)),
            *self.parts,
            xmlns=None if inside else "http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:.2f} {height:.2f}",
            width=None if inside else shown[0],
            height=None if inside else shown[1],
            font_family=_FONTS,
            role="img",
            aria_labelledby=f"{name}-title {name}-desc",
        )

    def made(self, suffix: str) -> str | bytes:
        """What a file that ends in ``.svg``, ``.png`` or ``.pdf`` holds.

        Raises InputError for any other, and where the library for the last two is not installed.
        """
        kinds: dict[str, Callable[[], str | bytes]] = {
            ".svg": lambda: str(self),
            ".png": lambda: png(self.svg()),
            ".pdf": lambda: pdf(self.svg(printed=True)),
        }
        if suffix.lower() not in kinds:
            raise InputError(f"a picture as {quoted(suffix)}, expected {listed([*kinds])}")
        return kinds[suffix.lower()]()

    def save(self, path: PathLike) -> None:
        """Write it to a file, as its suffix says: ``.svg``, or ``.png`` and ``.pdf`` (extra ``plot``)."""
        made = self.made(Path(path).suffix)
        write_whole(path, made if isinstance(made, bytes) else made.encode())

    def __str__(self) -> str:
        return self.svg() + "\n"

    def __repr__(self) -> str:
        return f"<Picture {self.title}: {self.said}>"

    def _repr_svg_(self) -> str:
        return self.svg()
