"""The gallery is what its commands draw."""

import importlib.util
import re
from pathlib import Path

import pytest
from oracles.program import PAGES, ROOT

FOLDER = ROOT / "docs" / "gallery"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# The error of an error is its size; pixels of a map that rounding has in another colour.
LOOSE = re.compile(r"error of its log10 is \S+|known to \S+|data:image/png;base64,[^\"]*")


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_picture(gallery):
    assert gallery.page() == PAGES[ROOT / "docs" / "gallery.md"]
    assert {f"{Path(result).stem}-{name}.svg" for result, name, _ in gallery.PICTURES} == {
        path.name for path in FOLDER.iterdir()
    }


@pytest.mark.slow
def test_every_picture_is_drawn_again(gallery):
    """Words are the same, numbers and coordinates but for rounding."""
    for name, drawn in gallery.pictures().items():
        kept = LOOSE.sub("", (FOLDER / name).read_text("utf-8"))
        drawn = LOOSE.sub("", drawn)
        assert NUMBER.sub("#", drawn) == NUMBER.sub("#", kept), name
        numbers = [[float(one) for one in NUMBER.findall(text)] for text in (drawn, kept)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.2), name
