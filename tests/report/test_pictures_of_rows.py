"""Pictures of rows hold the data: lines and pixels, read back; strangers' rows are drawn or refused."""

import base64
import contextlib
import copy
import json
import math
import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest

from gradscope.errors import InputError
from gradscope.report.phase import contour, phases
from gradscope.report.pictures.figures import FIGURES_OF_ROWS, picture_of_rows
from gradscope.report.rows_page import rows_page

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\"'&]]>\x07\u202e\ud800"


def point(rate, steps=10, theory=None, **settings):
    """A row of a grid whose rate is this; None of one that failed."""
    row = {"schema": "gradscope/sweep/1", "point": str(settings), "settings": settings, "subject": "made up"}
    if rate is None:
        return {**row, "log10_norm": None, "rate": None, "horizon": None, "verdict": None, "error": "made up"}
    norm = rate * steps / math.log(10)
    return {
        **row,
        "log10_norm": norm,
        "rate": rate,
        "horizon": 4.0,
        "verdict": "stable",
        "theory_rate": theory,
    }


def grid(rate, xs=(0.0, 1.0, 2.0, 3.0), ys=(0.0, 1.0, 2.0), theory=lambda x, y: None):
    return [point(rate(x, y), theory=theory(x, y), gain=x, forget_bias=y) for x in xs for y in ys]


def checkpoints(count=5, lags=(1, 3, 10)):
    return [
        {
            "schema": "gradscope/track/1",
            "checkpoint": f"run2/step_{10 * k}.pt",
            "log10_norm": -float(k),
            "horizon": float(10 * k),
            "verdict": "vanishing",
            "by_lag": {"lag": list(lags), "log10_norm": [-k * lag / lags[-1] for lag in lags]},
        }
        for k in range(count)
    ]


ROWS = {"phase": grid(lambda x, y: x - y, theory=lambda x, y: x - y - 0.5), "training": checkpoints()}


def drawn(rows, name="phase", size="column"):
    return ElementTree.fromstring(str(picture_of_rows(rows, name, size)))


def lines_of(root, title):
    """The points of the lines under this title, of those with an edge once."""
    groups = [g for g in root.iter(f"{SVG}g") if g.findtext(f"{SVG}title") == title]
    lines = [line.get("points") for group in groups for line in group.iter(f"{SVG}polyline")]
    return [
        np.array([[float(x) for x in pair.split(",")] for pair in line.split()])
        for line in dict.fromkeys(lines)
    ]


def pixels(root):
    """The places in the palette of the first picture, and where it stands."""
    picture = next(root.iter(f"{SVG}image"))
    data = base64.b64decode(picture.get("href").partition(",")[2])
    width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))
    at = data.index(b"IDAT")
    rows = np.frombuffer(zlib.decompress(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at])]), np.uint8)
    box = [float(picture.get(name)) for name in ("x", "y", "width", "height")]
    return rows.reshape(height, width + 1)[:, 1:], box


@pytest.mark.parametrize("size", ["column", "wide", "page", "120x90"])
def test_contours_are_where_the_rates_are_zero(size):
    """Of x - y and x - y - 1/2, in the places of the grid, which the picture's box has."""
    root = drawn(ROWS["phase"], size=size)
    _, (left, top, width, height) = pixels(root)
    for title, shift in (("measured: rate 0", 0.0), ("theory: rate 0", 0.5)):
        lines = lines_of(root, title)
        assert lines
        for line in lines:
            x = (line[:, 0] - left) / width * 4 - 0.5
            y = (top + height - line[:, 1]) / height * 3 - 0.5
            np.testing.assert_allclose(x - y, shift, atol=0.03)


def test_colours_are_the_rates():
    places, _ = pixels(drawn(grid(lambda x, y: None if x == y == 1 else x - 2 * y)))
    middle = 64
    for i, y in enumerate((2, 1, 0)):  # the highest is above
        for j, x in enumerate((0, 1, 2, 3)):
            rate = x - 2 * y
            expected = 0 if x == y == 1 else middle + round(63 * (rate / 4 if rate < 0 else rate / 3))
            assert places[i, j] == expected


def test_of_seeds_the_median_counts_and_other_options_have_a_diagram_each():
    rows = [
        point(x + s, gain=x, forget_bias=y, seed=s, cell=cell)
        for cell in ("a", "b") for x in (0.0, 1.0) for y in (0.0, 1.0) for s in (0, 1, 7)
    ]  # fmt: skip
    found = phases(rows)
    assert [phase.title for phase in found] == ["cell=a", "cell=b"]
    np.testing.assert_array_equal(found[0].value, [[1, 2], [1, 2]])
    assert found[0].of == 3
    assert len([*drawn(rows, size="wide").iter(f"{SVG}image")]) == 3  # and that of the key


def test_a_saddle_and_what_is_not_known():
    """Four crossings of a square are two lines; squares of a NaN have none, an infinite value has a side."""
    for sign in (1, -1):
        lines = contour(sign * np.array([[2.0, -1.0], [-1.0, 2.0]]))
        assert sorted(map(len, lines)) == [2, 2]
    assert contour(np.array([[1.0, math.nan], [-1.0, -1.0]])) == []
    ((a, b),) = contour(np.array([[-math.inf, 2.0], [-math.inf, 2.0]]))
    assert (a[0], b[0]) == (0.5, 0.5)
    x, y = np.meshgrid(np.arange(9.0), np.arange(9.0))
    (ring,) = contour(np.hypot(x - 4, y - 4) - 2.5)
    assert ring[0] == ring[-1]
    np.testing.assert_allclose(np.hypot(*(np.array(ring) - 4).T), 2.5, atol=0.05)


def test_one_axis_is_a_line():
    rows = [point(x - 1, theory=x - 1.25, gain=x) for x in (0.0, 0.5, 1.0, 2.0)]
    root = drawn(rows)
    (line,) = lines_of(root, "measured")
    np.testing.assert_allclose(
        np.diff(line[:, 1]) / np.diff(line[:, 0]), np.diff(line[:, 1])[0] / np.diff(line[:, 0])[0], rtol=0.02
    )
    assert lines_of(root, "theory")


def test_training_shows_gain_horizon_and_lags():
    root = drawn(ROWS["training"], "training", "wide")
    (gain,), (horizon,) = lines_of(root, "gain"), lines_of(root, "horizon, in steps")
    assert np.all(np.diff(gain[:, 1]) > 0)  # downwards
    assert np.all(np.diff(horizon[:, 1]) < 0)
    np.testing.assert_allclose(gain[:, 0], horizon[:, 0])
    places, (left, _, width, _) = pixels(root)
    np.testing.assert_allclose((gain[:, 0] - left) / width, (np.arange(5) + 0.5) / 5, atol=2e-3)
    norms = np.array([row["by_lag"]["log10_norm"] for row in ROWS["training"]]).T[::-1]
    np.testing.assert_array_equal(places, 1 + np.round((norms + 4) / 4 * 63))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"0", "40", "training step", "gain by lag"} <= set(texts)


def test_training_is_in_the_order_of_its_steps():
    """Shells put step_10 before step_2; names that differ in more are in the order of the rows."""
    rows = checkpoints(12)
    in_order = str(picture_of_rows(rows, "training"))
    assert str(picture_of_rows(sorted(rows, key=lambda row: row["checkpoint"]), "training")) == in_order
    for row, name in zip(rows, "cab" * 4, strict=True):
        row["checkpoint"] = f"{name}{row['checkpoint']}"
    backwards = drawn(rows[::-1], "training")
    assert "checkpoint" in {text.text for text in backwards.iter(f"{SVG}text")}
    (gain,) = lines_of(backwards, "gain")
    assert np.all(np.diff(gain[:, 1]) < 0)  # upwards, as given


def test_a_gain_of_zero_is_at_the_bottom():
    rows = checkpoints(5)
    rows[2]["log10_norm"] = rows[4]["log10_norm"] = None
    text = str(picture_of_rows(rows, "training"))
    assert "the gain goes from 1.00 to 0" in text
    (gain,) = lines_of(ElementTree.fromstring(text), "gain")
    assert gain[2, 1] == gain[4, 1] > gain[3, 1]
    alone = drawn([rows[0] | {"log10_norm": -10.7}], "training")
    assert "1 checkpoint: " in alone.findtext(f"{SVG}desc")
    labels = [text for text in alone.iter(f"{SVG}text") if text.text == "3.2e-11"]
    assert labels
    for text in labels:  # to the left of its end, six tenths of the letters' size each
        assert float(text.get("x")) > 0.55 * float(text.get("font-size")) * len("3.2e-11")


def test_training_goes_on_beside_what_is_missing():
    rows = copy.deepcopy(ROWS["training"])
    rows[2] = {"schema": "gradscope/track/1", "checkpoint": "x", "error": "it is gone"}
    del rows[4]["by_lag"]
    assert "1 could not be measured" in str(picture_of_rows(rows, "training"))
    for row in rows:
        row.pop("by_lag", None)
    assert "rows of before have no gain by lag" in str(picture_of_rows(rows, "training"))


@pytest.mark.parametrize("name", [*FIGURES_OF_ROWS])
def test_rows_of_strangers(name):
    """Whatever stands in a row, it is drawn as well-formed XML without a script, or refused in one line."""
    damage = [None, HOSTILE, math.nan, 1e308, -1e308, [], {}, True, [HOSTILE], {"lag": [1], "log10_norm": []}]
    refused = 0
    for key in (
        "settings",
        "checkpoint",
        "log10_norm",
        "rate",
        "horizon",
        "verdict",
        "theory_rate",
        "by_lag",
        "subject",
    ):
        for value in damage:
            rows = copy.deepcopy(ROWS[name])
            rows[1][key] = value
            with contextlib.suppress(InputError):
                refused += 1
                text = str(picture_of_rows(rows, name))
                refused -= 1
                root = ElementTree.fromstring(text)
                assert not [*root.iter(f"{SVG}script")]
                assert not re.search(r"[\x00-\x08\u202e\ud800]", text)
                assert "nan" not in re.sub(r'href="[^"]*"', "", text).lower()
    assert refused < 60


@pytest.mark.parametrize("name", [*FIGURES_OF_ROWS])
def test_hostile_names(name):
    rows = copy.deepcopy(ROWS[name])
    for row in rows:
        row["subject"] = row["checkpoint"] = HOSTILE
        if name == "phase":
            row["settings"] = {
                HOSTILE if key == "gain" else key: value for key, value in row["settings"].items()
            }
    assert not [*ElementTree.fromstring(str(picture_of_rows(rows, name))).iter(f"{SVG}script")]


def test_lines_that_are_nowhere_are_not_in_the_key():
    told = str(picture_of_rows(grid(lambda x, y: 1 + x, theory=lambda x, y: x - y - 0.5), "phase"))
    assert "measured: rate 0" not in told
    assert "theory: rate 0" in told
    assert "lines: where it is zero, by mean-field theory" in told
    assert "nowhere is it zero" in str(picture_of_rows(grid(lambda x, y: 1 + x), "phase"))


def test_a_curve_that_nobody_sees_says_why():
    rows = [point(rate, gain=x, cell=cell) for x in (0.0, 1.0) for cell, rate in (("a", x), ("b", None))]
    assert "cell=b: not measured" in str(picture_of_rows(rows, "phase"))
    for row in rows:
        row |= {"rate": None} if row["verdict"] and row["settings"]["cell"] == "a" else {}
    with pytest.raises(InputError, match="no gradient gets through, or none was measured"):
        picture_of_rows(rows, "phase")


def test_what_is_refused():
    with pytest.raises(InputError, match=r"the rows are 'gradscope/track/1', expected gradscope/sweep/1"):
        picture_of_rows(ROWS["training"], "phase")
    with pytest.raises(InputError, match="did you mean phase"):
        picture_of_rows(ROWS["phase"], "phse")
    with pytest.raises(InputError, match="the grid has no axis of several numbers"):
        picture_of_rows([point(0.1, cell="lstm"), point(0.2, cell="gru")], "phase")
    with pytest.raises(InputError, match=r"the rows are of 2 grids \(gain; forget_bias\), expected one"):
        picture_of_rows([point(0.1, gain=1.0), point(0.1, gain=2.0), point(0.2, forget_bias=1.0)], "phase")
    with pytest.raises(InputError, match=r"2 rows are of the point gain=1\.0, asked with other options"):
        picture_of_rows([point(0.1, gain=1.0), point(0.3, gain=1.0), point(0.2, gain=2.0)], "phase")
    cells = [str(k) for k in range(20)]
    rows = [point(x, gain=x, forget_bias=y, cell=c) for c in cells for x in (0.0, 1.0) for y in (0.0, 1.0)]
    with pytest.raises(InputError, match="the grid has 20 diagrams"):
        picture_of_rows(rows, "phase")


@pytest.mark.parametrize("name", [*FIGURES_OF_ROWS])
def test_the_page_of_rows(run, tmp_path, name):
    """One file: a heading, the picture, every number; nothing is run or loaded, whatever rows are called."""
    rows = copy.deepcopy(ROWS[name])
    rows[0] |= {"checkpoint": HOSTILE, "point": HOSTILE, "error": HOSTILE}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    code, page, _ = run("report", file)
    assert code == 0
    assert "<script" not in page
    assert "default-src &#x27;none&#x27;" in page
    assert page.count("<svg") == 1
    assert f"{len(rows)} {'points' if name == 'phase' else 'checkpoints'}" in page
    assert page.count("<tr>") >= len(rows)
    assert len(page) < 300_000


def test_what_clipping_leaves_is_shown_where_its_threshold_is_an_axis():
    rows = [
        point(x, gain=x, clip=c) | {"loss": {"clip": {"factor": c / 4, "log10_norm": 1.0}}}
        for x in (0.0, 1.0) for c in (1.0, 2.0, 4.0)
    ]  # fmt: skip
    (found,) = phases(rows)
    assert (found.x, found.y) == ("gain", "clip")
    np.testing.assert_array_equal(found.value, [[0.25, 0.25], [0.5, 0.5], [1, 1]])
    root = drawn(rows)
    assert not lines_of(root, "measured: rate 0")
    assert any("clipping leaves" in (text.text or "") for text in root.iter())


def test_what_rises_by_equal_factors_stands_at_equal_distances():
    root = drawn([point(x, gain=x) for x in (1.0, 10.0, 100.0, 1000.0)])
    (line,) = lines_of(root, "measured")
    np.testing.assert_allclose(np.diff(line[:, 0]), np.diff(line[:, 0])[0], rtol=1e-3)


def test_many_diagrams_are_not_flat():
    rows = [
        row | {"settings": row["settings"] | {"cell": cell}}
        for row in grid(lambda x, y: x - y)
        for cell in "abcde"
    ]
    (height,) = {float(image.get("height")) for image in drawn(rows, size="page").iter(f"{SVG}image")} - {
        10.4
    }
    assert height > 100


def test_a_page_of_training_has_the_gains_by_lag():
    page = rows_page(checkpoints())
    assert page.count("<details>") == 3
    assert "next to no part in what is learned" in page
    assert '<th scope="col">10</th>' in page
    assert "1.00e-04" in page  # of the last checkpoint at lag 10
    with pytest.raises(InputError, match="a row is damaged"):
        rows_page([checkpoints()[0] | {"by_lag": {"lag": [1], "log10_norm": []}}])


def test_files_as_an_axis_are_told_apart_by_their_own_names():
    def names(*files):
        rows = [point(x, gain=x, checkpoint=file) for file in files for x in (0.0, 1.0)]
        return {title.text for title in drawn(rows).iter(f"{SVG}title")}

    assert {"checkpoint=a.pt", "checkpoint=b.pt"} <= names("/a-long/folder/a.pt", "/a-long/folder/b.pt")
    assert {"checkpoint=one/a.pt", "checkpoint=two/a.pt"} <= names("one/a.pt", "two/a.pt")


def test_a_page_without_a_picture_shows_its_numbers():
    page = rows_page([point(-0.5, init=init) for init in ("keras", "flax")])
    assert "<svg" not in page
    assert "<details><summary>Exact numbers" not in page
    assert page.count("keras") == 1
