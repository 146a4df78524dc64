"""Pictures hold the data: their points, read back by the ticks that the picture itself shows."""

import base64
import contextlib
import dataclasses
import itertools
import json
import math
import re
import sys
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from oracles.made_up import LSTM, STEPS, analysis

from gradscope.errors import InputError
from gradscope.report.pictures.colours import image, shades
from gradscope.report.pictures.converted import png
from gradscope.report.pictures.figures import FIGURES, picture
from gradscope.report.pictures.frame import Frame, stretches, thinned

SVG = "{http://www.w3.org/2000/svg}"
RATES = {"full": -0.25, "carousel": -0.5, "R_z": -1.0, "R_f": None}
HOSTILE = "<script>alert(1)</script>\"'&]]>\x07\u202e\ud800"


def result(rates=RATES, **fields):
    """The JSON of a made-up analysis with eigenvalues and histograms."""
    told = json.loads(analysis(rates, **fields).to_json())
    if told["matrices"]:
        told["matrices"][0]["eigenvalues"] = [[1.5, 0.0], [0.0, 0.5], [0.0, -0.5]]
        told["gates"]["f"]["histogram"] = [0.25, *[0.0] * 9, 0.5, *[0.0] * 8, 0.25]
    told["loss"] = {"profile": {"lag": [0], "log10_norm": [[None]]}}
    told["loss"]["units"] = {"": {"step": [1, 4, 7], "unit": [1, 3], "log10": [[-6, -3, 0], [None, -2, -9]]}}
    return told


def stacked(name):
    """What makes a result one of two layers, for the picture of them."""
    if name != "layers":
        return {}
    parts = ((LSTM, f"below {HOSTILE}"), ({"full": -0.5}, "above"))
    return {"layers": [json.loads(analysis(rates, layer=layer).to_json()) for rates, layer in parts]}


def drawn(told, name, **asked):
    text = str(picture(told, name, **asked))
    return ElementTree.fromstring(text), text


def pairs(points):
    return np.array([[float(x) for x in pair.split(",")] for pair in points.split()])


def axes(root):
    """From the ticks and their numbers: functions from pixels to values."""
    numbers = [(t, float(t.get("x")), float(t.get("y"))) for t in root.iter(f"{SVG}text")]
    numbers = [(float(t.text), x, y, t.get("text-anchor")) for t, x, y in numbers if _is_number(t.text)]
    ys = [(y, value) for value, _, y, anchor in numbers if anchor == "end"]
    xs = [(x, value) for value, x, _, anchor in numbers if anchor == "middle"]
    font = float(root.find(f".//{SVG}text").get("font-size"))

    def through(ends, shift):
        (a, u), (b, v) = ends[0], ends[-1]
        return lambda at: u + (at + shift - a) / (b - a) * (v - u)

    # The numbers stand a third of their height below their lines.
    return through(xs, 0.0), lambda of: through([(y, of(v)) for y, v in ys], 0.35 * font)


def _is_number(text):
    return re.fullmatch(r"-?[\d.]+(e[+-]\d+)?", text or "")


def of_chain(root, name):
    (group,) = (
        g
        for g in root.iter(f"{SVG}g")
        if g.find(f"{SVG}title") is not None and g.find(f"{SVG}title").text == name
    )
    return [pairs(line.get("points")) for line in group.iter(f"{SVG}polyline")]


@pytest.mark.parametrize("size", ["column", "wide", "slide", "120x90"])
def test_gains_by_lag_are_where_the_axes_say(size):
    root, _ = drawn(result(), "lag", size=size)
    x, y = axes(root)
    for name, rate in (("full", -0.25), ("carousel", -0.5)):
        (points,) = of_chain(root, name)
        lags, norms = x(points[:, 0]), y(np.log10)(points[:, 1])
        np.testing.assert_allclose(norms, rate * lags, atol=0.06)
        assert lags[0] == pytest.approx(1, abs=0.1)
    assert len(of_chain(root, "full")[0]) == STEPS


@pytest.mark.parametrize(("size", "points"), [("column", 8), ("slide", 16), ("page", 9.75)])
@pytest.mark.parametrize("name", ["lag", "eigenvalues"])
def test_letters_are_as_large_as_a_size_says_and_lines_grow_with_them(name, size, points):
    root, _ = drawn(result(), name, size=size)
    zoom = float(root.get("width")) / float(root.get("viewBox").split()[2])
    font = max(float(text.get("font-size")) for text in root.iter(f"{SVG}text"))
    font /= 0.85 if name == "eigenvalues" else 1  # no more than headings
    assert font * zoom * 72 / 96 == pytest.approx(points, rel=0.01)
    thick = max(float(part.get("stroke-width", 0)) for part in root.iter())
    assert thick * zoom > 1.5 * points * 96 / 72 / 13


def test_a_zero_ends_the_line_and_a_path_far_below_leaves_the_picture():
    told = result({**RATES, "R_o": -50.0})
    root, text = drawn(told, "lag")
    (dead,) = of_chain(root, "R_f")
    x, y = axes(root)
    assert x(dead[-1, 0]) <= STEPS - 3
    assert of_chain(root, "R_o") == []
    assert "Below the picture: R_o." in text
    bottom = y(np.log10)(float(root.get("height")))
    assert -40 < bottom < -10


@pytest.mark.parametrize(
    "rates", [{"full": 0.0}, {"full": -3 / STEPS}, {"full": -40.0}, {"full": 40.0}, RATES]
)
def test_names_of_thresholds_hide_no_line_and_no_number(rates):
    root, _ = drawn(result(rates), "lag")
    texts = {t.text: t for t in root.iter(f"{SVG}text")}
    boxes = [box(texts[name]) for name in ("vanishing", "exploding")]
    numbers = [box(t) for t in texts.values() if _is_number(t.text)]
    points = np.concatenate([pairs(line.get("points")) for line in root.iter(f"{SVG}polyline")])
    for left, top, right, bottom in boxes:
        inside = (points > [left, top]) & (points < [right, bottom])
        assert not inside.all(axis=1).any()
    for mine, other in itertools.product(boxes[:1], [*numbers, boxes[1]]):
        assert mine[2] <= other[0] or other[2] <= mine[0] or mine[3] <= other[1] or other[3] <= mine[1]


def box(text):
    """Left, top, right, bottom of a text, whose characters are about as wide as half their height."""
    x, y, size = (float(text.get(name)) for name in ("x", "y", "font-size"))
    wide = 0.5 * size * len(text.text)
    left = x - {"end": wide, "middle": wide / 2}.get(text.get("text-anchor"), 0)
    return left, y - 0.8 * size, left + wide, y


def test_a_pointer_that_rests_on_a_lag_is_told_its_numbers():
    told = result()
    for name, there in (
        ("lag", "lag 5: full 5.62e-02, carousel 3.16e-03, R_z 1.00e-05, R_f 1.00e-05"),
        ("share", "lag 5: carousel 75.0 %, R_z 35.0 %, R_f -10.0 %"),
    ):
        root, _ = drawn(told, name, size="page")
        stripes = {s.find(f"{SVG}title").text: s for s in root.iter(f"{SVG}rect") if len(s)}
        assert len(stripes) == 20
        stripe = stripes[there]
        left, wide = float(stripe.get("x")), float(stripe.get("width"))
        x, _ = axes(root)
        assert x(left) < 5 < x(left + wide)
    assert not any(len(s) for s in drawn(told, "lag")[0].iter(f"{SVG}rect")), "of a page alone"


@pytest.mark.parametrize("name", ["lag", "spectrum"])
def test_what_is_counted_has_whole_numbers_and_what_is_not_seen_no_line_in_the_legend(name):
    told = result({"full": -0.25, "carousel": -0.3, "R_z": -50.0})
    for chain in told["chains"]:
        chain["by_lag"] = {key: values[:3] for key, values in chain["by_lag"].items()}
    root, text = drawn(told, name)
    counted = [t.text for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    counted = [float(number) for number in counted if _is_number(number)]
    assert counted
    assert all(number == round(number) for number in counted)
    (gone,) = re.findall(r"Below the picture: ([^.]*)\.", text)
    in_legend = [t.text for t in root.iter(f"{SVG}text") if t.text in ("full", "carousel", "R_z")]
    assert "R_z" in gone
    assert sorted([*gone.split(", "), *in_legend]) == ["R_z", "carousel", "full"]


def test_one_path_is_the_full_chain_and_not_drawn_again():
    told = result({"full": -0.25, "R": -0.25})
    for name in ("lag", "spectrum"):
        root, text = drawn(told, name)
        assert [t.text for t in root.iter(f"{SVG}text") if t.text in ("full", "R")] == ["full"]
        assert "path" not in text
    with pytest.raises(InputError, match="one path carries all"):
        drawn(told, "share")


@pytest.mark.parametrize("rate", [0.0, 2.0 / STEPS, -2.0 / STEPS, -6.0 / STEPS, -30.0])
def test_the_numbers_of_an_axis_are_within_the_picture(rate):
    told = result({"full": rate}) | {"thresholds": {"vanishing_below": 1.0, "exploding_above": 1e3}}
    for name in ("lag", "spectrum"):
        root, _ = drawn(told, name)
        font = float(root.find(f".//{SVG}text").get("font-size"))
        for label in root.iter(f"{SVG}text"):
            if label.get("text-anchor") == "end" and _is_number(label.text):
                assert float(label.get("x")) >= 0.55 * font * len(label.text)


def test_the_batch_is_an_area_between_its_extremes():
    root, text = drawn(result(batch=3), "lag")
    x, y = axes(root)
    (area,) = (p for p in root.iter(f"{SVG}polygon"))
    points = pairs(area.get("points"))
    upper, lower = points[len(points) // 2], points[len(points) // 2 - 1]
    assert x(upper[0]) == pytest.approx(STEPS, abs=0.1)
    assert y(np.log10)(upper[1]) == pytest.approx(-0.23 * STEPS, abs=0.1)
    assert y(np.log10)(lower[1]) == pytest.approx(-0.25 * STEPS, abs=0.1)
    assert "Lines are medians of the batch" in text


def test_a_loss_stands_beside_the_gain_relative_to_where_it_begins():
    told = result()
    told["loss"] = {"profile": {"lag": [0, 1, 2, 40], "log10_norm": [[5.0, 4.5, 4.0, -5.0]]}}
    root, _ = drawn(told, "lag")
    x, y = axes(root)
    (points,) = of_chain(root, "loss |dL/ds|")
    np.testing.assert_allclose(x(points[:, 0]), [1, 2, 40], atol=0.2)
    np.testing.assert_allclose(y(np.log10)(points[:, 1]), [-0.5, -1, -10], atol=0.1)


def test_shares_are_bars_and_stacked_areas():
    root, text = drawn(result({"full": -0.25, "carousel": -0.5, "R_z": -1.0, "R_f": -2.0}), "share")
    bars = [float(r.get("width")) for r in root.iter(f"{SVG}rect")][1:]
    assert bars[1] / bars[0] == pytest.approx(0.35 / 0.75, rel=1e-3)
    assert bars[2] / bars[0] == pytest.approx(0.1 / 0.75, rel=0.01)
    assert "R_f -10.0 %" in text
    ys = axes(root)[1]
    heights = [ys(float)(pairs(p.get("points"))[:, 1]) for p in root.iter(f"{SVG}polygon")]
    for found, ends in zip(heights, [(0, 0.75), (0.75, 1.1), (-0.1, 0)], strict=True):
        assert (found.min(), found.max()) == pytest.approx(ends, abs=0.02)


@pytest.mark.parametrize("loss", [False, True])
def test_a_path_has_one_colour_in_all_pictures(loss):
    """That of its bar, however its line lies: by their norms the paths here stand the other way round."""
    told = result({"full": -0.25, "carousel": -1.5, "R_z": -1.0, "R_f": -0.75})
    if loss:
        told["loss"]["profile"] = {"lag": [0, 1, 2], "log10_norm": [[0.0, -0.2, -0.4]]}
    found = {}
    for name in ("lag", "share", "spectrum"):
        for group in drawn(told, name)[0].iter(f"{SVG}g"):
            title = group.find(f"{SVG}title")
            colours = {c[2:] for one in group for c in (one.get("class") or "").split() if c[2:].isdigit()}
            if title is not None and colours:
                found.setdefault(title.text, set()).update(colours)
    assert [found[name] for name in ("full", "carousel", "R_z", "R_f")] == [{"0"}, {"1"}, {"2"}, {"3"}]
    assert len(found) == 4 + loss
    assert len(set().union(*found.values())) == 4 + loss, "no two have the same"


def test_shares_that_are_lost_are_gaps_however_many_lags_there_are():
    told = result()
    lags, share = list(range(1, 5001)), np.full(5000, 0.5)
    share[[100, 101, 2000, *range(3000, 3500)]] = np.nan
    plain = [None if np.isnan(s) else s for s in share]
    told["profile"] = {"lag": lags, "log10_norm": [[-1.0] * 5000], "share": {"carousel": plain, "R_z": plain}}
    root, _ = drawn(told, "share")
    x, _ = axes(root)
    ends = [x(pairs(p.get("points"))[:, 0]) for p in root.iter(f"{SVG}polygon")]
    assert len(ends) >= 4
    for found in ends:
        assert not ((found > 3020) & (found < 3480)).any()


def test_singular_values_are_where_the_axes_say():
    root, _ = drawn(result(), "spectrum")
    x, y = axes(root)
    (points,) = of_chain(root, "full")
    np.testing.assert_allclose(x(points[:, 0]), [1, 2, 3, 4], atol=0.02)
    np.testing.assert_allclose(y(np.log10)(points[:, 1]), [-10, -11, -12, -13], atol=0.05)


def places(path):
    """(k, 2): where the pieces of a path begin, each told from where the one before it ended."""
    found = []
    end = np.zeros(2)
    for x, y, way, length in re.findall(r"[Mm]([-\d.]+),([-\d.]+)([hv])([-\d.]+)", path.get("d")):
        found.append(end + np.array([x, y], float))
        end = found[-1] + float(length) * np.array([way == "h", way == "v"])
    return np.array(found)


def test_eigenvalues_are_in_the_plane_of_the_unit_circle():
    root, text = drawn(result(), "eigenvalues", size="slide")
    (circle,) = root.iter(f"{SVG}circle")
    unit, x0, y0 = (float(circle.get(name)) for name in ("r", "cx", "cy"))
    inside, beyond, marks = root.iter(f"{SVG}path")
    sizes = sorted(result()["matrices"][0]["singular_values"])
    found = (places(marks)[:, 0] - x0) / unit
    np.testing.assert_allclose(found, sizes, atol=0.6 / unit)
    for path, expected in ((inside, [[0, 0.5], [0, -0.5]]), (beyond, [[1.5, 0]])):
        found = (places(path) - [x0, y0]) * [1, -1] / unit
        np.testing.assert_allclose(found, expected, atol=2e-3)
    assert inside.get("stroke") != beyond.get("stroke")
    assert "R_f radius 0.500, norm 1.25" in text


def test_matrices_that_are_alike_have_one_scale_and_others_one_each():
    told = result()
    one = told["matrices"][0]
    for factor, alike in ((1.5, True), (9.0, False)):
        other = {"name": "b", "eigenvalues": [[factor * x, factor * y] for x, y in one["eigenvalues"]]}
        told["matrices"] = [one, one | other]
        root, text = drawn(told, "eigenvalues")
        radii = {circle.get("r") for circle in root.iter(f"{SVG}circle")}
        assert (len(radii) == 1) == alike
        assert ("scale, which each matrix has of its own" in text) != alike


def test_the_heat_map_is_a_picture_of_its_cells():
    root, _ = drawn(result(), "heatmap")
    image, scale = (pixels(one.get("href")) for one in root.iter(f"{SVG}image"))
    assert (image.shape, scale.shape) == ((2, 3, 4), (1, 64, 4))
    assert image[1, 0, 3] == 0, "zero is empty"
    at = {tuple(colour): k for k, colour in enumerate(scale[0].tolist())}
    found = [[at.get(tuple(colour)) for colour in row] for row in image.tolist()]
    decades = np.linspace(-9, 0, 64)
    for row, expected in zip(found, ([-6, -3, 0], [None, -2, -9]), strict=True):
        for k, log10 in zip(row, expected, strict=True):
            assert (k is None) == (log10 is None)
            assert k is None or decades[k] == pytest.approx(log10, abs=9 / 63)
    assert (np.diff(scale[0, :, :3].astype(float) @ [0.2126, 0.7152, 0.0722]) > 0).all(), "brighter is more"


def test_the_axes_of_a_heat_map_end_with_the_last_unit_and_step():
    """Not where the last row and column begin; that is all that older results tell."""
    told, ends = result(), []
    for more in ({}, {"steps": 9, "units": 4}):
        told["loss"]["units"][""] |= more
        ends.append([t.text for t in drawn(told, "heatmap")[0].iter(f"{SVG}text")][1:5])
    assert ends == [["1", "3", "1", "7"], ["1", "4", "1", "9"]]


def test_without_a_loss_the_map_is_of_the_gradient_that_survives_best():
    told = result()
    told["returning"] = {"": {"step": [1, 2], "unit": [1, 2], "log10": [[-4, 0], [None, -1]]}}
    of_loss = drawn(told, "heatmap")[1]
    del told["loss"]["units"]
    root, text = drawn(told, "heatmap")
    assert ("Gradient of the loss" in of_loss, "The gradient that survives best" in text) == (
        True,
        True,
    )
    image = pixels(next(root.iter(f"{SVG}image")).get("href"))
    assert image.shape == (2, 2, 4)
    assert image[1, 0, 3] == 0
    assert image[0, 1, :3].sum() > image[1, 1, :3].sum() > image[0, 0, :3].sum()
    del told["returning"]
    with pytest.raises(InputError, match="no gradient by unit"):
        picture(told, "heatmap")


def pixels(uri):
    """(h, w, 4) of a PNG, read by the standard's own words."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        chunks[kind] = data[at + 8 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size]) == zlib.crc32(kind + chunks[kind])
        at += 12 + size
    width, height = int.from_bytes(chunks[b"IHDR"][:4]), int.from_bytes(chunks[b"IHDR"][4:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    colours = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    alpha = np.full(len(colours), 255, np.uint8)
    alpha[: len(chunks[b"tRNS"])] = [*chunks[b"tRNS"]]
    return np.column_stack([colours, alpha])[rows[:, 1:]]


def test_bars_of_a_gate_are_as_high_as_its_histogram():
    root, text = drawn(result(), "gates")
    axis = root.find(f"{SVG}line")
    left, right, bottom = (float(axis.get(name)) for name in ("x1", "x2", "y1"))
    found = {}
    for group in root.iter(f"{SVG}g"):
        for bar in group:
            x, y, width, height = (float(bar.get(name)) for name in ("x", "y", "width", "height"))
            assert y + height == pytest.approx(bottom, abs=0.11)
            found[round(20 * (x + width / 2 - left) / (right - left) - 0.5)] = (height, group.get("fill"))
    assert {k: round(height / found[10][0], 2) for k, (height, _) in found.items()} == {
        0: 0.5,
        10: 1,
        19: 0.5,
    }
    assert found[0][1] == found[19][1] != found[10][1]
    assert "f mean 0.500, saturated 12.5 %" in text


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_is_small_has_no_script_and_says_what_it_shows(name):
    root, text = drawn(result(batch=3) | stacked(name), name, size="wide")
    assert len(text) < 100_000
    assert root.get("role") == "img"
    named = root.get("aria-labelledby").split()
    assert [root.find(f"*[@id='{one}']").tag for one in named] == [f"{SVG}title", f"{SVG}desc"]
    assert all(root.find(f"*[@id='{one}']").text for one in named)
    assert {e.tag.removeprefix(SVG) for e in root.iter()} <= {
        *(
            "svg",
            "title",
            "desc",
            "g",
            "rect",
            "line",
            "polyline",
            "polygon",
            "circle",
            "path",
            "text",
            "image",
        )
    }
    assert not any(
        key.startswith("on")
        or key == "style"
        or ("href" in key and not value.startswith("data:image/png;base64,"))
        for e in root.iter()
        for key, value in e.attrib.items()
    )
    assert root.get("width") == "661.4"


@pytest.mark.parametrize("name", FIGURES)
def test_names_of_strangers_are_text(name):
    told = result()
    for chain in told["chains"][1:]:
        chain["name"] = HOSTILE
    told["shares"] = {HOSTILE: 0.75, "R_z": 0.25}
    told["profile"]["share"] = {HOSTILE: told["profile"]["share"]["carousel"]}
    told["gates"] = {HOSTILE: told["gates"]["f"]}
    told["matrices"][0]["name"] = HOSTILE
    told["verdict"] |= {"reasons": [HOSTILE], "level": HOSTILE}
    root, text = drawn(told | stacked(name), name)
    assert "<script" not in text
    assert not re.search("[\x00-\x08\u202e\ud800]", text)
    assert any("<script>" in (e.text or "") for e in root.iter())


def test_lines_keep_their_extremes_when_they_are_thinned():
    y = np.sin(np.arange(100_000.0))
    y[54_321], y[65_432], y[11_111] = 7, -7, np.nan
    lags, norms = thinned(np.arange(1.0, 100_001), y, 800)
    assert len(lags) <= 800
    assert {54_322, 65_433, 1, 100_000} <= set(lags.astype(int))
    assert (np.nanmax(norms), np.nanmin(norms)) == (7, -7)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([0, 1, 2], [[(0, 0), (1, 1), (2, 2)]]),
        ([0, 4, 0], [[(0, 0), (0.5, 2)], [(1.5, 2), (2, 0)]]),
        ([np.nan, 1, np.nan, 0], [[(1, 1)], [(3, 0)]]),
        ([-4, 4, 5], []),
    ],
)
def test_a_line_is_cut_where_it_leaves(y, expected):
    found = list(stretches(np.arange(float(len(y))), np.array(y, float), -2.0, 2.0))
    assert found == expected


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({}, "lags", "did you mean lag"),
        ({"size": "poster"}, "lag", "expected column, wide, slide, page or WIDTHxHEIGHT in millimetres"),
        ({"size": "3x900000"}, "lag", "50 to 1000 each"),
        ({"layer": "encoder"}, "lag", "expected one of layer0"),
    ],
)
def test_what_is_not_there_is_refused(fields, name, words):
    with pytest.raises(InputError, match=re.escape(words)):
        picture(result(), name, **fields)


@pytest.mark.parametrize(
    ("name", "words"), [("share", "no shares"), ("gates", "no gates"), ("eigenvalues", "no eigen")]
)
def test_a_bare_chain_has_no_paths_gates_or_matrices(name, words):
    with pytest.raises(InputError, match=words):
        picture(result({"full": 0.0}), name)


def test_a_dead_chain_is_said_to_be_so():
    _, text = drawn(result({"full": None}), "lag")
    assert "Gain of the full chain: exactly 0 from lag 38 on" in text
    with pytest.raises(InputError, match="nothing to draw"):
        picture(result({"full": None}), "spectrum")


def test_damage_anywhere_is_refused_or_drawn():
    """Every value of the JSON in turn is replaced: no other error than ours comes."""
    whole = result(batch=2)

    def places(value, way=()):
        yield way
        inside = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, item in itertools.islice(inside, 3):
            yield from places(item, (*way, key))

    for way in [way for way in places(whole) if way and way[0] not in ("problem", "gradscope")]:
        for wrong in (None, "x", [], {}, -1e308, math.inf):
            told = json.loads(json.dumps(whole))
            *parents, last = way
            holder = told
            for key in parents:
                holder = holder[key]
            holder[last] = wrong
            for name in FIGURES:
                with contextlib.suppress(InputError):
                    ElementTree.fromstring(str(picture(told, name)))


def test_layers_are_side_by_side_on_one_axis_with_all_of_them():
    told = result({"full": -0.1}) | stacked("layers")
    root, text = drawn(told, "layers", size="wide")
    ticks = [(float(t.get("y")), t.text) for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end"]
    ticks = [(y, np.log10(float(tick))) for y, tick in ticks if float(tick) != STEPS]
    (top, high), (bottom, low) = min(ticks), max(ticks)
    font = float(root.find(f".//{SVG}text[@text-anchor='end']").get("font-size"))

    def decades(at):
        return high + (at + 0.35 * font - top) / (bottom - top) * (low - high)

    for name, rate in (("below", -0.25), ("above", -0.5)):
        (group,) = [g for g in root.iter(f"{SVG}g") if name in g.find(f"{SVG}title").text]
        (points,) = [pairs(line.get("points")) for line in group.iter(f"{SVG}polyline")]
        np.testing.assert_allclose(decades(points[:, 1]), rate * np.arange(1, STEPS + 1), atol=0.1)
        assert f">layer{name == 'above':d} {'above<' if name == 'above' else ''}" in text
    dashed = [pairs(one.get("points")) for one in root.iter(f"{SVG}polyline") if one.get("stroke-dasharray")]
    for points in dashed:
        np.testing.assert_allclose(decades(points[:, 1]), -0.1 * np.arange(1, STEPS + 1), atol=0.1)
    assert len(dashed) == 2
    alone, text = drawn(told, "layers", layer="above")
    assert "Dashed" not in text
    assert len([*alone.iter(f"{SVG}polyline")]) == 1
    with pytest.raises(InputError, match="of one layer: lag draws"):
        drawn(result(), "layers")


def test_layers_side_by_side_and_each_alone():
    several = dataclasses.replace(
        analysis({"full": -0.1, "layer0": -0.2, "0->1": -0.3}),
        gates={},
        layers=(analysis(LSTM, layer="below"), analysis({"full": -0.5}, layer="above")),
    )
    told = json.loads(several.to_json())
    for layer in told["layers"]:
        layer["gates"] = {"f": {"mean": 0.5, "saturated": 0.0, "histogram": [0.05] * 20}}
    _, text = drawn(told, "gates")
    assert text.index("below f") < text.index("above f")
    for layer in told["layers"]:
        layer["problem"]["layer"] = f"{'a very long name ' * 9}{layer['problem']['layer']}"
    root, text = drawn(told, "gates")
    found = [t.text for t in root.iter(f"{SVG}text")]
    assert sum(one == "f: mean 0.50" for one in found) == 2, "the gate is named however long the layer's is"
    assert sum(one.endswith(("below", "above")) for one in found) == 2, "the layers are told apart"
    told["layers"][1]["problem"]["layer"] = "above"
    _, alone = drawn(told, "lag", layer="layer1")
    assert alone == drawn(told, "lag", layer="above")[1]
    assert "layer0" not in alone


def test_a_figure_of_an_analysis_is_shown_by_notebooks_and_saved(tmp_path):
    figure = analysis(LSTM).figure("lag", size="slide")
    assert figure._repr_svg_() == str(figure).rstrip("\n")
    figure.save(tmp_path / "lag.svg")
    assert (tmp_path / "lag.svg").read_text("utf-8") == str(figure)
    assert "1.00e-10 at lag 40" in repr(figure)


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "result.json"
    analysis(LSTM).save(path)
    return path


def test_plot_writes_a_file(run, file, tmp_path):
    out = tmp_path / "lag.svg"
    code, text, err = run("plot", file, "lag", "-o", out)
    assert (code, text) == (0, "")
    assert f"wrote {out}, " in err
    assert out.read_text("utf-8") == str(analysis(LSTM).figure("lag"))
    assert run("plot", file, "lag")[1] == out.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected the JSON of gradscope analyze --json"),
        ("[1]", "schema is None"),
        ('{"schema": "gradscope/inspection/1"}', "schema is 'gradscope/inspection/1'"),
        ('{"schema": "gradscope/analysis/1", "a": NaN}', "NaN is no JSON"),
        ('{"schema": "gradscope/analysis/1"}', "damaged"),
        ("[" * 100_000, "expected the JSON"),
        ("\udcff", "x.json: no text in UTF-8: expected the JSON"),
    ],
)
def test_plot_refuses_what_is_no_result(run, tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_text(text, "utf-8", "surrogateescape")
    code, out, err = run("plot", path, "lag")
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_pdf_and_png_are_as_large_as_asked_and_text_is_text(run, file, tmp_path):
    pytest.importorskip("vl_convert")
    for name in ("x.pdf", "x.PNG"):
        code, out, err = run("plot", file, "lag", "-o", tmp_path / name, "--size", "127x63.5")
        assert (code, out, err.count("\n")) == (0, "", 1)
        assert f"wrote {tmp_path / name}, " in err
    page = (tmp_path / "x.pdf").read_bytes()
    assert page.startswith(b"%PDF-")
    assert re.search(rb"/MediaBox \[0 0 360 180\]", page), "points"
    assert b"/ToUnicode" in page
    assert int.from_bytes((tmp_path / "x.PNG").read_bytes()[16:20]) == 1500, "300 dots per inch"
    at = (tmp_path / "x.PNG").read_bytes().index(b"pHYs") + 4
    assert round(int.from_bytes((tmp_path / "x.PNG").read_bytes()[at : at + 4]) * 0.0254) == 300, (
        "and says so"
    )
    analysis(LSTM).figure("lag", size="127x63.5").save(tmp_path / "same.png")
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "x.PNG").read_bytes()


def true_colours(png):
    """(h, w, 4) of a PNG with eight bits for each of red, green, blue and what is opaque."""
    width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
    data, at = b"", 8
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + 4 * width).astype(int)
    found = np.zeros((height + 1, width + 1, 4), int)  # a row above and a column to the left of zeros
    for y, (kind, *_) in enumerate(rows, 1):
        for x, raw in enumerate(rows[y - 1, 1:].reshape(width, 4), 1):
            left, above, corner = found[y, x - 1], found[y - 1, x], found[y - 1, x - 1]
            guess = left + above - corner
            far = [abs(guess - one) for one in (left, above, corner)]
            nearest = np.where(
                (far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner)
            )
            found[y, x] = (raw + (0, left, above, (left + above) // 2, nearest)[kind]) % 256
    return found[1:, 1:]


def test_cells_stay_cells_in_a_png():
    """Smoothed, a map of a few points would tell of others that nobody computed."""
    pytest.importorskip("vl_convert")
    frame = Frame(0.0, 0.0, 12.0, 6.0, 8.0)
    drawn = image(np.array([[1, 2]]), shades([(10, 20, 30), (200, 100, 0)], 2), frame)
    found = true_colours(png(f'<svg xmlns="{SVG[1:-1]}" width="12" height="6">{drawn}</svg>'))
    inside = found[2:-2, 2:-2].reshape(-1, 4)
    assert len(inside) > 300
    assert {tuple(one) for one in inside.tolist()} == {(10, 20, 30, 255), (200, 100, 0, 255)}


@pytest.mark.parametrize("name", ["x.pdf", "x.png"])
def test_without_the_library_there_is_a_way_out(run, file, tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    code, out, err = run("plot", file, "lag", "-o", tmp_path / name)
    assert (code, out) == (2, "")
    assert "pip install 'gradscope[plot]'" in err
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lag", "-o", "x.jpg"], "expected .svg, .png, .pdf"),
        (["share", "--view"], "--view draws lag alone"),
        (["lag", "--view", "-o", "x.svg"], "--view is for the terminal"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(run, file, arguments, words):
    code, out, err = run("plot", file, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_plot_in_the_terminal(run, file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "20")
    code, out, _ = run("plot", file, "lag", "--view")
    assert code == 0
    assert "a full   b carousel" in out
    assert (max(map(len, out.splitlines())), out.count("\n")) == (60, 19)


def test_plot_does_not_write_over_what_it_reads(run, file):
    other = file.with_suffix(".svg")
    file.rename(other)
    code, _, err = run("plot", other, "lag", "-o", other)
    assert (code, "is a file to be read" in err) == (2, True)


def test_missing_files_are_named(run, tmp_path):
    code, _, err = run("plot", tmp_path / "none.json", "lag")
    assert code == 2
    assert "No such file" in err


def test_the_error_is_a_band_where_it_is_known_and_a_bar_at_the_end_where_not():
    told = result()
    told["chains"][0]["log10_norm_error"] = [2.0]
    root, _ = drawn(told, "lag")
    assert len([one for one in root.iter(f"{SVG}line") if one.find(f"{SVG}title") is not None]) == 1
    assert "At shorter lags its error was not estimated." in drawn(told, "lag")[1]
    assert "Its error, drawn, would be thinner than its line." in drawn(result(), "lag")[1]
    told["profile"]["error"] = {"lag": [1, 10, STEPS], "log10_norm": [0.01, 0.1, 0.4]}
    root, text = drawn(told, "lag")
    assert "the error of its log10 is 2e+00, at 3 lags 1e-02 to 4e-01" in text
    assert "thinner than its line" not in text
    (band,) = (one for one in root.iter(f"{SVG}polygon") if one.find(f"{SVG}title").text.startswith("error"))
    x, y = axes(root)
    points = pairs(band.get("points"))
    upper, lower = points[: len(points) // 2], points[: len(points) // 2 - 1 : -1]
    lags, wide = x(upper[:, 0]), y(np.log10)(upper[:, 1]) - y(np.log10)(lower[:, 1])
    for lag, error in ((10, 0.1), (20, np.sqrt(0.1 * 0.4)), (40, 0.4)):
        assert wide[np.abs(lags - lag).argmin()] == pytest.approx(2 * error, rel=0.15)
