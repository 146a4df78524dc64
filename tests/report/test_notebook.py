"""A spectrum in a notebook."""

import re
from xml.etree import ElementTree

import numpy as np

import gradscope


def rows(spectrum):
    cells = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", spectrum._repr_html_())
    return [row for row in cells if row[0] != "&hellip;"]


def test_every_value_or_the_ends_of_many():
    sizes = np.diag([2.0, 1.0, 0.1, 0.0])
    found = gradscope.spectrum(np.array([sizes] * 400))
    assert [row[:2] for row in rows(found)] == [
        ("1", "2.58e+120"),
        ("2", "1.00e+00"),
        ("3", "1.00e-400"),
        ("4", "0"),
    ]
    assert "4 singular values, 1 exactly zero" in found._repr_html_()
    assert "4 singular values, none exactly zero" in gradscope.spectrum(np.eye(4)[None])._repr_html_()
    assert "4 singular values, all exactly zero<" in gradscope.spectrum(np.zeros((1, 4, 4)))._repr_html_()
    many = rows(gradscope.spectrum(np.array([np.diag(np.arange(1.0, 31))])))
    assert [int(row[0]) for row in many] == [1, 2, 3, 4, 5, 6, 25, 26, 27, 28, 29, 30]


def test_it_is_drawn_with_the_picture_of_an_analysis():
    found = gradscope.spectrum(np.array([np.diag([2.0, 1.0, 0.0])] * 3))
    shown = found._repr_html_()
    svg = ElementTree.fromstring(shown[shown.index("<svg") :])
    line = max(
        svg.iter("{http://www.w3.org/2000/svg}polyline"), key=lambda one: float(one.get("stroke-width"))
    )
    heights = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert len(heights) == 2
    assert heights[0] < heights[1]
    assert "from 8.00 to 1.00." in shown
    assert "1 is zero, and below the picture" in shown
    assert "<svg" not in gradscope.spectrum(np.zeros((2, 3, 3)))._repr_html_()
