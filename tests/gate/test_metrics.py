"""Metrics by name, of analyses whose numbers are known."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from oracles.made_up import LSTM, STEPS, analysis

from gradscope import InputError
from gradscope.gate.metrics import Metric, all_metrics, least, metric

WHOLE = analysis(LSTM, batch=3)


def several(*names):
    """A whole and its layers, all of them with different rates."""
    layers = [analysis({**LSTM, "full": -0.1 * (k + 1)}, layer=name) for k, name in enumerate(names)]
    blocks = {"full": -0.3, **{f"layer{k}": -0.1 * (k + 1) for k in range(len(names))}}
    return dataclasses.replace(analysis(blocks), layers=tuple(layers))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("log10_norm", (-10.0, -9.6, -9.2)),
        ("log10_norm.full", (-10.0, -9.6, -9.2)),
        ("log10_norm.carousel", (-20.0, -19.6, -19.2)),
        ("log10_norm.R_f", (-math.inf,) * 3),
        ("rate.R_z", tuple((-6.0 + 0.01 * b) * math.log(10) for b in range(3))),
        ("horizon", (12, 12, 13)),  # the last lag with rate * lag >= -3
        ("horizon.carousel", (6, 6, 6)),
        ("log10_largest_gain", (-0.25, -0.24, -0.23)),
        ("share.R_z", (0.34, 0.35, 0.36)),
        ("saturated.f", (0.125,) * 3),
        ("saturated", (0.125,) * 3),
    ],
)
def test_values_of_every_sequence(name, values):
    found = metric(WHOLE, name)
    assert found.values == pytest.approx(values, abs=1e-12)
    assert (found.lowest, found.highest) == (min(found.values), max(found.values))
    assert found.median == pytest.approx(sorted(values)[len(values) // 2], abs=1e-12)
    assert name.removesuffix(".full") == found.name


def test_errors_in_units_of_their_own():
    assert metric(WHOLE, "log10_norm").error == 3e-14
    assert metric(WHOLE, "rate").error == pytest.approx(3e-14 * math.log(10) / STEPS)
    assert metric(WHOLE, "horizon").error == 1  # -0.25 * 12 is the threshold itself: one rounding below, 11
    assert metric(WHOLE, "share.R_z").error == 1e-12


def test_layers_by_name_by_the_end_of_it_and_by_number():
    stack = several("encoder.l0", "encoder.l1")
    for name in ("log10_norm.encoder.l1", "log10_norm.l1"):
        found = metric(stack, name)
        assert found.values == pytest.approx((-8.0,))
        assert (found.layer, found.part, found.name) == ("encoder.l1", None, "log10_norm.encoder.l1")
    assert metric(stack, "log10_norm.layer1").values == pytest.approx((-8.0,))
    assert metric(stack, "horizon.l0.carousel").values == (6,)
    assert metric(stack, "saturated.layer0.f").layer == "encoder.l0"
    assert metric(stack, "log10_norm").values == pytest.approx((-12.0,))
    assert metric(stack, "saturated").values == (0.125,)
    one = analysis(LSTM, layer="rnn")
    assert metric(one, "log10_norm.rnn.R_z") == metric(one, "log10_norm.R_z")


def test_what_two_layers_are_called_is_neither():
    with pytest.raises(InputError, match=r"no metric 'rate\.l0' of this analysis: did you mean "):
        metric(several("a.l0", "b.l0"), "rate.l0")


def test_every_metric_is_found_by_its_name():
    for one in (WHOLE, several("encoder.l0", "encoder.l1"), several("a.l0", "b.l0")):
        every = all_metrics(one)
        assert len({each.name for each in every}) == len(every) > 10
        for each in every:
            assert metric(one, each.name) == each
    assert "log10_norm.layer0" not in {each.name for each in all_metrics(several("a", "b"))}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("log10norm", "no metric 'log10norm': did you mean log10_norm?"),
        ("x", "no metric 'x': expected log10_norm, rate, horizon, log10_largest_gain, share, saturated"),
        ("horizon.caroussel", "did you mean horizon.carousel"),
        ("saturated.zzz", "did you mean saturated.f"),
        ("share", "did you mean share."),
    ],
)
def test_what_there_is_not_is_answered_with_the_nearest(name, said):
    with pytest.raises(InputError, match=said):
        metric(WHOLE, name)


def test_no_more_is_measured_than_is_asked_for():
    assert least(["log10_norm", "rate"]) == "verdict"
    assert least(["log10_norm", "horizon"]) == "gain"
    assert least(["log10_norm.R_o"]) == least(["share.R_o", "horizon"]) == "paths"
    assert least(["saturated.f", "rate"]) == "all"
    alone = dataclasses.replace(analysis({"full": -0.25}), only="verdict")
    with pytest.raises(InputError, match="only = 'verdict' measures no more"):
        metric(alone, "saturated")


def test_pooled_as_one_batch():
    joined = Metric.pooled([metric(analysis({"full": rate}), "log10_norm") for rate in (-0.1, -0.4, -0.2)])
    assert (joined.median, joined.lowest, joined.highest) == pytest.approx((-8.0, -16.0, -4.0))


def test_shares_and_saturation_are_of_every_sequence():
    """Of those through which nothing gets there is no share; the errors are those of the others."""
    one = analysis(LSTM, batch=3)
    each = {"R_z": np.array([0.5, np.nan, 0.2]), "carousel": np.array([0.5, np.nan, 0.8])}
    errors = np.array([1e-9, np.nan, 1e-8])
    gates = {
        "f": {"saturated": 0.2, "sequences": {"saturated": [0.1, 0.2, 0.3]}, "saturated_error": 0.0},
        "i": {"saturated": 0.2, "sequences": {"saturated": [0.4, 0.1, 0.1]}, "saturated_error": 0.01},
    }
    one = dataclasses.replace(one, sequence_shares=each, shares_error=errors, gates=gates)
    share = metric(one, "share.carousel")
    assert (share.values, share.error) == ((0.5, 0.8), 1e-8)
    assert metric(one, "saturated.f").values == (0.1, 0.2, 0.3)
    assert (metric(one, "saturated").values, metric(one, "saturated").error) == ((0.4, 0.2, 0.3), 0.01)
    before = dataclasses.replace(one, gates={"f": {"saturated": 0.2}})
    with pytest.raises(InputError, match="saturated"):
        metric(before, "saturated.f")
    dead = dataclasses.replace(
        one, sequence_shares={"R_z": np.full(2, np.nan)}, shares_error=np.full(2, np.nan)
    )
    assert (np.isnan(metric(dead, "share.R_z").median), metric(dead, "share.R_z").error) == (True, None)
    unknown = dataclasses.replace(one, shares_error=np.array([np.nan, np.nan, 1e-8]))
    assert metric(unknown, "share.R_z").error is None


def test_what_clipping_leaves():
    clip = SimpleNamespace(factor=np.array([1.0, 0.25, 0.5]), factor_error=1e-9)
    found = metric(dataclasses.replace(WHOLE, loss=SimpleNamespace(clip=clip)), "clip_factor")
    assert (found.median, found.lowest, found.highest, found.error) == (0.5, 0.25, 1.0, 1e-9)
    with pytest.raises(
        InputError, match="'clip_factor' of this analysis: give clip, and a loss by readout or"
    ):
        metric(WHOLE, "clip_factor")
