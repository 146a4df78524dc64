"""Levels at and around the thresholds, and sentences with the right numbers."""

import dataclasses
import math

import numpy as np
import pytest

from gradscope.errors import InputError
from gradscope.product_svd.spectrum import spectrum
from gradscope.report.chains import chain_of
from gradscope.report.next_steps import next_steps
from gradscope.report.notes import chain_notes
from gradscope.report.subject import subject
from gradscope.report.verdict import judge, level, scientific
from gradscope.settings import Policy


def scalar_chain(*factors, error=None, name="full"):
    """The chain of 1 x 1 Jacobians ``factors``, the last one being the last step."""
    found = spectrum(np.array(factors, float)[:, None, None], by_lag=True)
    if error is not None:
        found = dataclasses.replace(found, log10_norm_error=error)
    return chain_of(name, [found], 1e-3)


@pytest.mark.parametrize(
    ("factors", "error", "expected"),
    [
        ([1e-4], None, "vanishing"),
        ([1e-2], None, "stable"),
        ([1e2], None, "stable"),
        ([1e4], None, "exploding"),
        ([1e-8, 1e4], None, "exploding"),  # it vanishes at the end but explodes on the way
        ([1e4, 1e-4], None, "stable"),  # the gradient of the last step never sees 1e4 alone
        ([0.0], None, "vanishing"),
        ([2e-3], 0.5, "undecided"),
        ([5e-4], 0.5, "undecided"),
        ([5e-4], 0.2, "vanishing"),
        ([2e3], 0.5, "undecided"),
        ([5e2], 0.5, "undecided"),
        ([2e3], 0.2, "exploding"),
    ],
)
def test_level(factors, error, expected):
    assert level(scalar_chain(*factors, error=error), Policy()) == expected


def test_the_median_sequence_decides():
    spectra = [spectrum(np.array([[[w]]]), by_lag=True) for w in (1e-9, 1.0, 1e9)]
    assert level(chain_of("full", spectra, 1e-3), Policy()) == "stable"


@pytest.mark.parametrize("low", [0.0, -1.0, math.nan, math.inf])
def test_policy_refuses_what_is_no_gain(low):
    with pytest.raises(InputError, match=r"^vanishing_below "):
        Policy(vanishing_below=low)


def test_policy_refuses_inverted_thresholds():
    with pytest.raises(InputError, match="is not below"):
        Policy(10.0, 10.0)


@pytest.mark.parametrize(
    ("log10", "text"),
    [
        (0.0, "1.00"),
        (-0.0, "1.00"),
        (math.log10(3.456), "3.46"),
        (math.log10(0.02), "2.00e-02"),
        (-2000.0, "1.00e-2000"),
        (2000.5, "3.16e+2000"),
        (math.log10(9.999), "1.00e+01"),
        (-math.inf, "0"),
    ],
)
def test_scientific(log10, text):
    assert scientific(log10) == text


def test_reasons_of_a_vanishing_chain():
    full = scalar_chain(*[0.9] * 200)
    gain, way = judge([full], {}, Policy()).reasons
    assert "Over 200 steps" in gain
    assert f"{0.9**200:.2e}" in gain
    assert "below the vanishing threshold 0.001" in gain
    assert f"{math.log(0.9):+.4f} nats per step: halved every {math.log(2) / -math.log(0.9):.3g} steps" in way
    assert f"up to lag {int(math.log(1e-3) / math.log(0.9))} of 200" in way


def test_a_horizon_of_no_step_is_no_lag():
    assert judge([scalar_chain(1e-4, 1e-4)], {}, Policy()).reasons[1].endswith("at or above 0.001 at no lag.")


def test_one_is_no_plural():
    gain, _ = judge([scalar_chain(0.5)], {}, Policy()).reasons
    assert gain.startswith("Over 1 step the")
    problem = {"cell": "rnn", "hidden": 1, "steps": 1, "batch": 2, "source": "initialised", "lengths": [1, 2]}
    assert subject(problem, 0, 1) == "rnn, hidden 1, 1 to 2 steps, batch 2"
    assert subject(problem | {"lengths": None}, 0, 1) == "rnn, hidden 1, 1 step, batch 2"


def test_reasons_name_the_lag_of_the_peak():
    verdict = judge([scalar_chain(*[0.1] * 9, *[10.0] * 6)], {}, Policy())
    assert verdict.level == "exploding"
    assert "largest, 1.00e+06, at lag 6" in verdict.reasons[1]


def test_reasons_name_the_path_that_carries():
    chains = [scalar_chain(1.0), scalar_chain(0.5, name="a"), scalar_chain(0.25, name="b")]
    assert judge(chains, {"a": 0.2, "b": 0.8}, Policy()).reasons[-1] == (
        "b carries 80 % of the gradient; alone it would give a gain of 2.50e-01."
    )


def test_reasons_of_a_dead_chain():
    verdict = judge([scalar_chain(0.0, 1.0)], {"a": math.nan, "b": math.nan}, Policy())
    assert verdict.level == "vanishing"
    assert verdict.reasons[0].startswith("The product over 2 steps is zero, exactly or below what")


def test_a_gain_that_is_lost_in_rounding_is_not_called_stable():
    found = spectrum(np.ones((2, 1, 1)), by_lag=True)
    lost = {"log10_singular_values": np.array([math.nan]), "log10_norm_by_lag": np.array([0.0, math.nan])}
    chain = chain_of("full", [dataclasses.replace(found, **lost)], 1e-3)
    verdict = judge([chain], {}, Policy())
    assert verdict.level == "undecided"
    assert verdict.reasons[0].startswith("Over 2 steps rounding leaves no digit of the gain")
    assert scientific(chain.log10_norm.median) == "lost in rounding"


def test_notes_warn_when_the_trajectory_itself_is_not_repeatable():
    assert "13 of the 16 digits" in chain_notes(scalar_chain(*[10.0] * 13), "exploding", "float64")[0]
    assert "rounding" not in "".join(chain_notes(scalar_chain(*[10.0] * 11), "exploding", "float64"))
    assert "5 of the 7 digits" in chain_notes(scalar_chain(*[10.0] * 5), "exploding", "float32")[0]
    assert "rounding" not in "".join(chain_notes(scalar_chain(*[10.0] * 2), "stable", "float32"))


def test_a_model_on_inputs_that_are_made_is_to_have_its_own():
    def told(**problem):
        given = {"cell": "rnn", "steps": 9, **problem}
        return "give --inputs x.npy" in "".join(next_steps(given, "stable", 1e-3, ["full"], 0.0))

    assert told(source="model.pt", inputs="normal")
    assert not told(source="model.pt", inputs="x.npy")
    assert not told(source="initialised", inputs="normal")


def test_the_rms_gain_is_named_where_it_stands():
    def told(rms, only="all"):
        problem = {"cell": "rnn", "steps": 9, "only": only}
        return "".join(next_steps(problem, "stable", 1e-3, ["full"], 0.0, rms=rms))

    assert "the rms gain says" in told(True)
    assert "--top all says" in told(False)
    assert "--top all without --only verdict says" in told(False, only="verdict")


@pytest.mark.parametrize(
    ("given", "ways"),
    [
        ({"accuracy": "fast", "dtype": "float32", "top": 2}, "--accuracy full, --dtype float64, --top all"),
        ({"accuracy": "full", "dtype": "float64", "top": 1}, "--top all"),
        ({"top": 1, "only": "gain"}, "--top all without --only gain"),
        ({"top": 3, "only": "all"}, "--top all"),
        ({"accuracy": "full", "dtype": "float64", "top": None}, None),
    ],
)
def test_of_an_undecided_gain_no_way_is_named_that_was_gone(given, ways):
    (said,) = next_steps({"cell": "rnn", "steps": 9, **given}, "undecided", 1e-3, ["full"], -0.7)
    assert (f"({ways})" in said) if ways else ("--" not in said and said.endswith("being there."))


def test_a_bias_is_named_where_it_decides():
    def said(saturated):
        gates = {"f": {"mean": 0.5, "saturated": saturated}}
        problem = {"cell": "lstm", "steps": 9}
        return "".join(next_steps(problem, "vanishing", 1e-3, ["full", "carousel"], -1.0, gates=gates))

    assert "from b_f = " in said(0.1)
    assert "from b_f = " not in said(0.9)
