"""Colours of verdicts are legible on black and on white."""

import re

import pytest

from gradscope.gate.checks_table import OUTCOMES
from gradscope.report.table import STYLES


def luminance(rgb):
    """WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("style", sorted({*STYLES.values(), *OUTCOMES.values()} - {"dim"}))
def test_contrast(style):
    number = int(re.fullmatch(r"bold color\((\d+)\)", style)[1]) - 16
    assert 0 <= number < 216, "a colour of the cube, which no theme changes"
    steps = (0, 95, 135, 175, 215, 255)
    found = luminance([steps[number // 36], steps[number // 6 % 6], steps[number % 6]])
    assert (found + 0.05) / 0.05 >= 4
    assert 1.05 / (found + 0.05) >= 4
