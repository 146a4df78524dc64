"""``--only``: less is computed, and the verdict is that of the whole analysis."""

import dataclasses

import jsonschema
import numpy as np
import pytest

import gradscope
from gradscope.api import analyze_problems
from gradscope.cells import find
from gradscope.checkpoints import Model
from gradscope.checkpoints.layer import Layer
from gradscope.machine import find_devices
from gradscope.measure.cost import sooner_without_jacobians
from gradscope.measure.plan import Plan
from gradscope.problem.layers import Planned, make_problems
from gradscope.problem.problem import make_problem
from gradscope.settings import Settings

SIZES = {"hidden": 5, "input_size": 3, "steps": 40}
CASES = {
    "lstm": {},
    "lstm that explodes": {"gain": 4.0, "batch": 3},
    "lstm that remembers": {"biases": {"b_f": 5.0}},
    "projected": {"cell": "lstm-projected-3"},
    "gru": {"cell": "gru", "batch": 2},
    "gru before": {"cell": "gru-reset-before", "gain": 3.0},
    "relu, with dead units": {"cell": "rnn-relu", "gain": 2.0},
    "orthogonal": {"cell": "linear", "init": "orthogonal"},
    "a unit matrix": {"cell": "linear", "init": "identity", "vanishing_below": 1.0},
    "nothing gets through": {"cell": "linear", "gain": 0.0},
    "saturated": {"cell": "rnn", "gain": 40.0},
    "beyond float64": {"cell": "linear", "gain": 1e160},
    "cell view": {"view": "cell", "batch": 2},
    "without a path": {"cut": "R_z"},
    "fast": {"accuracy": "fast"},
    "top": {"top": 2},
    "lengths": {"batch": 3, "lengths": [40, 7, 22]},
}


def same_verdict(less, whole):
    """Level and sentences, but for the error of another run and what only the whole can say."""

    def said(analysis):
        return {reason.partition("; error of log10")[0] for reason in analysis.verdict.reasons}

    assert less.verdict.level == whole.verdict.level
    assert said(less) <= said(whole)
    assert len(less.verdict.reasons) >= 2 - (whole.full.log10_norm.median == -np.inf)
    for name in ("log10_norm", "log10_peak", "horizon", "rate"):
        found, expected = (dataclasses.astuple(getattr(one.full, name)) for one in (less, whole))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    for found, expected in zip(less.full.spectra, whole.full.spectra, strict=True):
        at, norms = np.argmax(found.log10_norm_by_lag), np.asarray(expected.log10_norm_by_lag)
        assert norms[at] == pytest.approx(norms.max(), abs=1e-9)  # of an orthogonal chain any lag is the peak
    assert less.chains[0].size == whole.chains[0].size


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_is_that_of_the_whole(case):
    whole = gradscope.analyze(**SIZES | CASES[case])
    for only in ("verdict", "gain", "paths"):
        less = gradscope.analyze(**SIZES | CASES[case], only=only)
        same_verdict(less, whole)
        told = less.to_dict()
        jsonschema.validate(told, gradscope.schema())
        assert told["problem"]["only"] == only
        assert (told["matrices"], told["gates"]) == ([], {})
        assert len(told["chains"]) == (len(whole.chains) if only == "paths" else 1)
        assert bool(told["profile"]["lag"]) == (only != "verdict")
        if only == "paths":
            assert told["shares"] == whole.to_dict()["shares"]
        elif only == "gain":
            np.testing.assert_allclose(less.full.by_lag, whole.full.by_lag, rtol=1e-9, atol=1e-9)
        if only != "paths" and "top" not in CASES[case]:
            assert told["problem"]["top"] == 1
            assert {len(values) for values in told["chains"][0]["log10_singular_values"]} == {1}


def several(gains, directions):
    """LSTMs of hidden 4, each upon the last of its direction, with these gains."""
    layers, below = [], {}
    for number, (gain, direction) in enumerate(zip(gains, directions, strict=True)):
        features = 4 if direction in below else 3
        weights = make_problem(
            Settings(hidden=4, input_size=features, seed=number, gain=gain)
        ).system.parameters
        reads = (below[direction],) if direction in below else ()
        name = below[direction] = f"l{number}"
        layers.append(Layer(find("lstm"), weights, name, np.zeros(8), direction=direction, below=reads))
    return Model(tuple(layers), tuple(layer.name for layer in layers))


@pytest.mark.parametrize(
    ("gains", "directions"),
    [
        ((1.0, 8.0), ("forward", "forward")),
        pytest.param((0.5, 1.0, 6.0), ("forward", "forward", "forward"), marks=pytest.mark.slow),
        ((6.0, 0.1), ("forward", "backward")),
    ],
)
def test_of_every_layer_too(gains, directions):
    model, found = several(gains, directions), {}
    for only in ("all", "verdict", "gain", "paths"):
        settings = Settings(steps=30, batch=2, only=only)
        found[only] = analyze_problems(make_problems(settings, model, find_devices()))
    for only in ("verdict", "gain", "paths"):
        same_verdict(found[only], found["all"])
        jsonschema.validate(found[only].to_dict(), gradscope.schema())
        for less, whole in zip(found[only].layers, found["all"].layers, strict=True):
            same_verdict(less, whole)
        for level in ("vanishing", "stable", "exploding", "undecided"):
            assert (
                found[only].matching([level]).verdict.matched
                == found["all"].matching([level]).verdict.matched
            )


def test_few_values_of_a_small_chain_are_taken_of_all(monkeypatch):
    """Programs for blocks take longer to compile than all values to find."""
    small, large = (make_problem(Settings(hidden=n, input_size=3, steps=40, top=2)) for n in (5, 2048))
    assert not sooner_without_jacobians(small)
    assert sooner_without_jacobians(large)
    monkeypatch.setattr("gradscope.measure.batch.sooner_without_jacobians", sooner_without_jacobians)
    monkeypatch.setattr("gradscope.measure.top_values.measure_together", lambda *_: pytest.fail("compiled"))
    few, every = (gradscope.analyze(**SIZES, top=top) for top in (2, "all"))
    assert few.to_dict()["problem"]["top"] == 2
    expected = every.full.spectra[0].log10_singular_values[:2]
    np.testing.assert_allclose(few.full.spectra[0].log10_singular_values, expected, atol=1e-10)
    assert few.verdict.level == every.verdict.level
    assert few.levels == every.levels


def test_what_will_be_done_is_said_before_it_is(monkeypatch):
    """Of several layers always; of one where it takes long."""
    monkeypatch.setattr("gradscope.measure.cost.unit_seconds", lambda *_: 4e-5)
    said = []
    settings = Settings(steps=30, batch=2, plan=lambda *told: said.append(told))
    Plan(settings, 1).of_layers([[Planned("a", find("lstm"), 4), Planned("b", find("lstm"), 4)]], 2, 30)
    ((line, seconds),) = said
    assert line.startswith("2 layers (a, b), the stack of 2 (16 states), 2 sequences of 30 steps: about ")
    assert 0 < seconds < 60
    Plan(settings, 1).of_one(make_problem(Settings(hidden=4, input_size=3, steps=30)))
    assert len(said) == 1
    Plan(settings, 1).of_one(make_problem(Settings(hidden=256, input_size=3, steps=2000)))
    assert said[1][0].startswith("lstm, 512 states, 1 sequence of 2000 steps: about ")
    assert "; --only verdict about " in said[1][0]
    assert said[1][1] > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_drawn_problems(seed):
    rng = np.random.default_rng(seed)
    drawn = {
        "cell": rng.choice(["lstm", "lstm-peephole", "gru", "rnn", "rnn-relu", "linear", "lstm-cifg"]),
        "hidden": int(rng.choice([2, 7, 24, 64])),
        "input_size": 3,
        "steps": int(rng.choice([3, 30, 300])),
        "gain": float(10 ** rng.uniform(-1, 1.5)),
        "batch": int(rng.choice([1, 3])),
        "inputs": rng.choice(["normal", "zeros"]),
        "seed": seed,
    }
    whole = gradscope.analyze(**drawn)
    same_verdict(gradscope.analyze(**drawn, only="verdict"), whole)


def test_what_only_all_measures_is_named_where_it_was_asked_for():
    asked = {"adjoint": np.ones(2), "clip": 1.0, "tbptt": 3, "h_detach": 0.5}
    drawn = {"cell": "linear", "hidden": 2, "input_size": 1, "steps": 5}
    found = gradscope.analyze(**drawn, **asked, only="gain")
    assert (
        "--adjoint, --clip, --tbptt, --h-detach not measured: --only gain leaves it out."
        in found.verdict.notes
    )
    assert not any("not measured" in note for note in gradscope.analyze(**drawn, only="gain").verdict.notes)
