"""A spectrum in a notebook."""

import re

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
    many = rows(gradscope.spectrum(np.array([np.diag(np.arange(1.0, 31))])))
    assert [int(row[0]) for row in many] == [1, 2, 3, 4, 5, 6, 25, 26, 27, 28, 29, 30]
