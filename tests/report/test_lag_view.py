"""The plot in the terminal holds the data: its letters and dots, read back by its own numbers."""

import json
import re

import numpy as np
import pytest
from oracles.made_up import LSTM, STEPS, analysis

from gradscope.report.lag_view import render_lag_view
from gradscope.report.terminal import Terminal

RATES = {"full": -0.25, "carousel": -0.5, "R_z": -1.0, "R_f": None}


def told(rates=RATES, **fields):
    return json.loads(analysis(rates, **fields).to_json())


def view(width=80, height=30, *, unicode=True, color=False, part=None):
    return render_lag_view(part or told(), Terminal(width, color, unicode, height))


def plot(text):
    """Its rows without the numbers beside them, and the row and value of each number."""
    rows = [line for line in text.splitlines() if re.match(r"[\de.+-]* *\S*[│|]", line)]
    numbers = [(k, row.split("│")[0].split("|")[0].strip()) for k, row in enumerate(rows)]
    inside = [re.split(r"[│|]", row, maxsplit=1)[1] for row in rows]
    return inside, [(k, np.log10(float(number))) for k, number in numbers if number]


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize(("width", "height"), [(40, 30), (80, 24), (120, 40), (200, 60)])
def test_it_is_as_large_as_the_terminal(width, height, unicode):
    lines = view(width, height, unicode=unicode).splitlines()
    assert max(map(len, lines)) in (width, width - 1)
    assert len(lines) == height - 1
    assert unicode or "".join(lines).isascii()


@pytest.mark.parametrize("unicode", [True, False])
def test_letters_stand_where_their_lines_are(unicode):
    rows, ((k, u), *_, (j, v)) = plot(
        re.sub("(?<=[·.])(vanish|explod)ing", " " * 9, view(100, 50, unicode=unicode))
    )
    width = max(map(len, rows))
    for letter, rate in (("a", -0.25), ("b", -0.5), ("c", -1.0)):
        found = [(row, at) for row, text in enumerate(rows) for at, one in enumerate(text) if one == letter]
        assert len(found) > (0 if unicode else 15)
        for row, at in found:
            value = u + (row - k) / (j - k) * (v - u)
            lag = 1 + at / (width - 1) * (STEPS - 1)
            assert value == pytest.approx(rate * lag, abs=1.6 * (u - v) / (j - k) + 0.5 * -rate)


def test_dots_are_the_line():
    """Of the lowest dot in every column of characters."""
    rows, ((k, u), *_, (j, v)) = plot(view(100, 50, part=told({"full": -0.25})))
    bits = [0x40 | 0x80, 0x04 | 0x20, 0x02 | 0x10, 0x01 | 0x08]
    width = max(map(len, rows))
    for at in range(width - 12):
        dots = [
            4 * row + 3 - low
            for row, text in enumerate(rows)
            if at < len(text) and "\u2800" < text[at] <= "\u28ff"
            for low, mask in enumerate(bits)
            if ord(text[at]) & mask
        ]
        if dots:
            value = u + ((max(dots) + 0.5) / 4 - k) / (j - k) * (v - u)
            assert value == pytest.approx(-0.25 * (1 + at / (width - 1) * (STEPS - 1)), abs=0.4)


def test_what_it_says_besides():
    text = view()
    assert text.startswith("Vanishing. ")
    assert "a full   b carousel   c R_z   d R_f" in text
    assert "▲ lag 13: below 0.001" in text
    assert {"vanishing", "exploding"} <= set(re.findall(r"·(\w+)", text))
    coloured = view(color=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == text


@pytest.mark.parametrize("unicode", [True, False])
def test_of_lines_on_one_another_each_is_seen(unicode):
    rows, _ = plot(view(100, 40, unicode=unicode, part=told({**RATES, "carousel": -0.25})))
    seen = "".join(rows).replace("vanishing", "").replace("exploding", "")
    assert min(seen.count("a"), seen.count("b")) >= (2 if unicode else 20)


def test_a_chain_that_is_zero_and_one_of_one_lag():
    assert "exactly 0 from lag" in view(part=told({"full": None}, cell=None))
    one = told(LSTM)
    for part in (one["profile"], *(chain["by_lag"] for chain in one["chains"])):
        part["lag"] = part["lag"][:1]
    one["profile"]["log10_norm"] = [row[:1] for row in one["profile"]["log10_norm"]]
    for chain in one["chains"]:
        chain["by_lag"]["log10_norm"] = chain["by_lag"]["log10_norm"][:1]
    assert "a full" in view(part=one)
