"""A gain of zero and one that rounding left nothing of are null in JSON: no view takes one for the other."""

import json
import math

import pytest
from oracles.made_up import STEPS, analysis

from gradscope.grid.phase_table import render_sweep
from gradscope.grid.sweep import Sweep
from gradscope.report.html_page import html_page
from gradscope.report.pictures.figures import picture, picture_of_rows
from gradscope.report.rows_page import rows_page
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look
from gradscope.track.rows import row_of
from gradscope.track.tracked import Track

# What a gain is called, and the rate of the made-up chain; the last three lags are as the gain.
GAINS = {"0": None, "lost in rounding": math.nan}
EACH = pytest.mark.parametrize("said", GAINS)


def told(said, **problem):
    return json.loads(analysis({"full": GAINS[said]}, cell=None, source="chain.npy", **problem).to_json())


def row(said, **more):
    found = row_of(analysis({"full": GAINS[said]}), (), light=False)
    assert found["log10_norm"] is None
    return {"schema": "gradscope/track/1", "checkpoint": "step_2.pt", **found, **more}


def cells(page):
    return [f"<td>{said}</td>" in page for said in GAINS]


@EACH
def test_on_a_page(said):
    page = html_page(told(said))
    assert f": chain.npy, 4 x 4, 40 steps, gain {said}</h1>" in page
    assert cells(page) == [said == one for one in GAINS]


@EACH
def test_in_pictures(said):
    result, beside = told(said), json.loads(analysis({"full": -0.5}, layer="above").to_json())
    lag = str(picture(result, "lag", "wide"))
    assert ("exactly 0 from lag" in lag) == (said == "0")
    assert (f"lost in rounding at lag {STEPS}" in lag) == (said != "0")
    result["layers"] = [told(said, layer="below"), beside]
    assert f"gain {said}" in str(picture(result, "layers", "wide"))


@EACH
def test_in_rows(said):
    rows = [{**row("0"), "log10_norm": -1.0, "checkpoint": "step_1.pt"}, row(said)]
    assert cells(rows_page(rows[1:])) == [said == one for one in GAINS]
    assert f": gain {said}, " in Track(rows).findings()[1].message
    last = "0" if said == "0" else "1.00e-01"  # the last that is known
    assert f"from 1.00e-01 to {last}." in str(picture_of_rows(rows, "training", "wide"))


@EACH
def test_in_a_sweep(said):
    points = [row(said, point="gain=1", settings={"gain": 1}), row("0", point="gain=2", settings={"gain": 2})]
    points[1] |= {"log10_norm": -1.0, "rate": -0.1}
    text = render_sweep(Sweep(points), Look(Terminal(120)))
    assert ("lost in rounding" in text) == (said != "0")


def test_a_lag_is_lost_where_the_curve_says_so():
    """Of one that says so of a single lag the others without a number are zero."""
    result = told("0")
    curve = result["chains"][0]["by_lag"]
    some, *others = (lag for lag, norm in zip(curve["lag"], curve["log10_norm"], strict=True) if norm is None)
    curve["lost"] = [some]
    table = html_page(result)
    assert f'<th scope="row">{STEPS}</th><td>0</td>' in table
    assert table.count("<td>lost in rounding</td>") == 0, "that lag has no row of its own"
    drawn = str(picture(result, "lag", "wide"))
    assert f"exactly 0 from lag {others[0]} on" in drawn


def test_training_does_not_draw_what_is_lost_as_zero():
    """Cells of lost lags are empty, of zeros as dark as can be: the images differ in these alone."""
    rows = [{**row(said), "checkpoint": f"step_{k}.pt"} for k, said in enumerate(GAINS)]
    rows.append({**rows[0], "log10_norm": -1.0, "checkpoint": "step_2.pt"})
    assert [bool(one["by_lag"].get("lost")) for one in rows[:2]] == [False, True]
    assert rows[0]["by_lag"]["log10_norm"] == rows[1]["by_lag"]["log10_norm"]
    lost = str(picture_of_rows(rows, "training", "wide"))
    del rows[1]["by_lag"]["lost"]
    assert str(picture_of_rows(rows, "training", "wide")) != lost


def test_without_a_path():
    """A gain that is lost has any verdict: it may have exploded on the way."""
    for said, rate in (("0", None), ("lost in rounding", math.nan)):
        other = {"log10_norm": {"median": None}, "horizon": {"median": 1.0}, "verdict": "exploding"}
        result = told("0") | {"without": {"R_z": other}}
        if rate is not None:
            other["unmeasured"] = analysis({"full": rate}).full.unmeasured
        assert f'<th scope="row">R_z</th><td>{said}</td>' in html_page(result)


def test_a_lag_that_is_lost_leaves_the_largest_of_the_others():
    chain = analysis({"full": math.nan}).full
    assert chain.log10_peak.median == -1.0
    assert chain.peak_lag.median == 1
