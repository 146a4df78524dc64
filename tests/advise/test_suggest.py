"""Suggestions: each setting that is said to reach a target does, in NumPy; what reaches none is said."""

import json
import math

import jax
import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.asking import make_problems

import gradscope
from gradscope.advise.goals import Stable
from gradscope.advise.knobs import KnobSetting
from gradscope.advise.repair import layers_of, set_knobs
from gradscope.advise.search import MOST, KnobSearch
from gradscope.advise.suggest import networks_of
from gradscope.advise.trial import Trial
from gradscope.checkpoints import read
from gradscope.errors import InputError
from gradscope.measure.batch import Means
from gradscope.report.next_steps import carousel_bias
from gradscope.schemas import schema
from gradscope.settings import Policy


def by_knob(found):
    return {one.knob: one for one in found.suggestions}


def scalar(folder, w):
    """h_t = w h_(t-1)."""
    np.savez(folder / "w.npz", W=np.ones((1, 1)), R=np.full((1, 1), w), b=np.zeros(1))
    return {"checkpoint": folder / "w.npz", "cell": "linear", "inputs": "zeros"}


@pytest.mark.parametrize(
    ("horizon", "gain", "bias"),
    [(20, 1e-3, 0.8854), (200, 1e-3, 3.3484), (1000, 1e-3, 4.9717), (200, math.exp(-1), 5.2958)],
)
def test_the_bias_of_a_carousel(horizon, gain, bias):
    assert carousel_bias(horizon, gain) == pytest.approx(bias, abs=5e-5)
    assert equations.sigmoid(carousel_bias(horizon, gain)) ** horizon == pytest.approx(gain)


@pytest.mark.parametrize(
    ("w", "target"), [(0.9, "stable"), (0.9, "critical"), (1.2, "critical"), (1.2, "stable")]
)
def test_a_scalar_is_scaled_in_one_step(w, target, tmp_path):
    """log10 gain = T log10(w alpha): the first order is exact, and the first guess is right."""
    found = gradscope.suggest(**scalar(tmp_path, w), steps=100, target=target)
    one = by_knob(found)["R"]
    assert one.reaches
    assert one.evaluations == 1
    aimed = {"critical": 0.0, "stable": -1.5 if w < 1 else 1.5}[target]
    assert 100 * math.log10(w * one.value) == pytest.approx(aimed, abs=0.05)
    assert one.verified_log10 == pytest.approx(100 * math.log10(w * one.value), abs=1e-9)
    assert one.predicted_log10 == pytest.approx(one.verified_log10, abs=1e-9)
    assert (one.was, one.setting) == (1.0, f"R=x{one.value:.6g}")


def test_singular_values_are_clipped_where_a_gain_explodes(tmp_path):
    found = gradscope.suggest(**scalar(tmp_path, 1.2), steps=100)
    one = by_knob(found)["clip R"]
    assert one.reaches
    assert one.was == pytest.approx(1.2)
    assert one.verified_log10 == pytest.approx(100 * math.log10(one.value), abs=1e-9)
    assert one.setting == f"R<={one.value:.6g}"


def test_a_horizon_is_reached_and_verified_by_the_equations(tmp_path):
    """The bias that is suggested gives the horizon, by products of complex-step Jacobians in NumPy."""
    n, d, steps, horizon = 4, 2, 50, 40
    options = {"cell": "lstm", "hidden": n, "input_size": d, "init": "keras", "steps": steps}
    found = gradscope.suggest(**options, horizon=horizon, knob=["b_f", "R_z", "init chrono"])
    ones = by_knob(found)
    assert ones["b_f"].reaches
    assert ones["b_f"].was == 1.0
    fresh = gradscope.analyze(**options, biases={"b_f": ones["b_f"].value}, only="gain")
    assert fresh.full.horizon.median == ones["b_f"].horizon >= horizon
    p, xs = parameters(options), inputs(options)
    states, product, norms = [np.zeros(2 * n)], np.eye(2 * n), []
    p = p | {"b_f": p["b_f"] + ones["b_f"].value - ones["b_f"].was}
    for x in xs:
        states.append(equations.advance("lstm", p, x, states[-1]))
    for x, state in zip(xs[::-1], states[-2::-1], strict=True):
        product = product @ equations.jacobian("lstm", p, x, state)
        norms.append(np.linalg.norm(product, 2))
    assert min(norms[:horizon]) >= 1e-3
    assert math.log10(norms[-1]) == pytest.approx(ones["b_f"].verified_log10, abs=1e-8)
    for one in found.suggestions:
        assert one.evaluations <= MOST
        assert one.reaches == (
            one.horizon is not None and one.horizon >= horizon and one.verdict != "exploding"
        )
    assert any("3.35" in line or "b_f is 1.00" in line for line in found.advice)


def parameters(options):
    from oracles.asking import make_problem

    return make_problem(**options).system.parameters


def inputs(options):
    from oracles.asking import make_problem

    return make_problem(**options).system.inputs[0]


def test_what_nothing_reaches_is_said(tmp_path):
    """A nilpotent R has no gain over two steps, whatever it is multiplied by."""
    np.savez(tmp_path / "n.npz", W=np.ones((2, 1)), R=np.array([[0.0, 1.0], [0.0, 0.0]]), b=np.zeros(2))
    found = gradscope.suggest(checkpoint=tmp_path / "n.npz", cell="linear", inputs="zeros", steps=5)
    assert [one.reaches for one in found.suggestions] == [False]
    told = found.to_dict()
    assert told["suggestions"][0]["verified_log10"] is None
    assert "No setting of these reaches a gain between 0.001 and 1000" in str(found)
    assert found._repr_html_().startswith("<pre")
    jsonschema.validate(told, schema("suggestions"))


@pytest.mark.slow
def test_inputs_of_a_thousand_are_normalised():
    x = 1000 * np.random.default_rng(0).standard_normal((30, 2))
    found = gradscope.suggest(cell="gru", hidden=4, inputs=x, biases={"b_z": 3.0}, knob="inputs")
    (one,) = found.suggestions
    assert one.reaches
    assert one.value == 1.0
    assert one.was == pytest.approx(1000, rel=0.2)


@pytest.mark.slow
def test_tanh_is_suggested_for_a_relu_that_explodes():
    found = gradscope.suggest(
        cell="lstm-relu", hidden=8, input_size=2, steps=40, gain=40.0, biases={"b_f": 2.0}, knob="activation"
    )
    (one,) = found.suggestions
    assert one.words == "activation tanh in place of relu"
    assert one.verified_log10 is not None


def test_layers_have_knobs_of_their_own(tmp_path):
    state = layouts.recurrent("rnn", 2, 3, layers=2, dtype="float64", scale=0.4)
    path = layouts.saved(state, tmp_path / "m.safetensors")
    found = gradscope.suggest(checkpoint=path, cell="rnn", inputs="zeros", steps=12, batch=1)
    ones = by_knob(found)
    assert {"layer0.R", "layer1.R", "R_*"} <= ones.keys()
    assert ones["R_*"].reaches
    scaled = {k: ones["R_*"].value * a if k.startswith("weight_hh") else a for k, a in state.items()}
    again = gradscope.analyze(
        checkpoint=layouts.saved(scaled, tmp_path / "s.safetensors"), cell="rnn", inputs="zeros", steps=12
    )
    assert again.full.log10_norm.median == pytest.approx(ones["R_*"].verified_log10, abs=1e-9)
    assert again.verdict.level == "stable"


def test_the_first_order_of_a_carousel_is_that_of_the_logarithm_of_its_gate(tmp_path):
    """Of a GRU of zero matrices the gain is sigmoid(b_z)^T: the first order is exact, the guess right."""
    zero = {f"{kind}_{gate}": np.zeros((1, 1)) for kind in "WR" for gate in "rzh"}
    zero |= {f"b_{gate}": np.zeros(1) for gate in "rzh"} | {"c_h": np.zeros(1)}
    np.savez(tmp_path / "g.npz", **zero)
    found = gradscope.suggest(checkpoint=tmp_path / "g.npz", cell="gru", inputs="zeros", steps=40, knob="b_z")
    (one,) = found.suggestions
    assert one.evaluations == 1
    assert one.value == pytest.approx(carousel_bias(40, 10**-1.5), abs=1e-6)
    assert one.predicted_log10 == pytest.approx(one.verified_log10, abs=1e-9)


def test_layers_side_by_side_have_settings_of_their_own(tmp_path):
    """Two directions: each gets its own; repair writes those of both, and the new file is at the target."""
    state = layouts.recurrent("rnn", 2, 3, bidirectional=True, dtype="float64", scale=0.4)
    state["weight_hh_l0_reverse"] = 0.8 * state["weight_hh_l0_reverse"]
    path = layouts.saved(state, tmp_path / "m.safetensors")
    options = {"checkpoint": path, "cell": "rnn", "inputs": "zeros", "steps": 12}
    found = gradscope.suggest(**options, knob="R")
    assert [one.knob for one in found.suggestions] == ["layer0.R", "layer1.R"]
    assert [one.layers for one in found.remedies] == [("layer0",), ("layer1",)]
    for one, end in zip(found.suggestions, ("_l0", "_l0_reverse"), strict=True):
        product = np.linalg.matrix_power(one.value * state[f"weight_hh{end}"], 12)
        assert one.reaches
        bias = state[f"bias_ih{end}"] + state[f"bias_hh{end}"]
        assert bias.any()  # so that the slopes are below 1
        assert one.verified_log10 < math.log10(np.linalg.norm(product, 2))
    jsonschema.validate(found.to_dict(), schema("suggestions"))
    repaired = gradscope.repair(**options, knob="R", output=tmp_path / "n.safetensors")
    assert repaired.knobs == tuple(one.setting for one in found.suggestions)
    for layer, one in zip(repaired.after.layers, found.suggestions, strict=True):
        assert layer.verdict.level == "stable"
        assert layer.full.log10_norm.median == pytest.approx(one.verified_log10, abs=1e-5)
    with pytest.raises(InputError, match=r"--knob 'b_f': expected one of layer0.R"):
        gradscope.suggest(**options, knob="b_f")


@pytest.mark.parametrize("case", ["two directions of two", "an LSTM and a GRU", "one"])
def test_a_setting_is_of_the_parameters_that_were_tried(case, tmp_path):
    """What repair makes of a knob's name is what suggest has changed, in whichever layers it is."""
    if case == "an LSTM and a GRU":
        state = layouts.recurrent("lstm", 2, 3, prefix="a.") | layouts.recurrent("gru", 3, 3, prefix="b.")
    else:
        two = case.startswith("two")
        state = layouts.recurrent("gru", 2, 3, layers=1 + two, bidirectional=two)
    model = read(
        layouts.saved(state, tmp_path / "m.safetensors"), reads=("b=a",) if "a.bias_ih_l0" in state else ()
    )
    problems = make_problems(model, jax.local_devices(), steps=2)
    layers, count = layers_of(problems), 0
    for network, group in zip(
        networks_of(problems, Policy(), Means(jax.local_devices())), problems.groups, strict=True
    ):
        place = group.members if len(problems.groups) > 1 else ()
        trial = Trial(network, Stable(Policy(), exploding=False), place)
        for knob in trial.knobs(every=True):
            u = -0.25
            text = knob.setting(u).removeprefix("clip ")
            parts = set_knobs(layers, [KnobSetting.parse(text)])
            changed = {
                (name, key)
                for name, own in parts.items()
                for key, array in own.items()
                if not np.array_equal(array, layers[name][key])
            }
            names = [problem.origin.layer for problem in problems.layers]
            expected = {
                (names[int(key[5 : key.index(".")])], key.partition(".")[2])
                if key.startswith("layer")
                else (names[group.members[0]], key)
                for key in knob.keys
            }
            assert changed <= expected
            assert changed == expected or "clip" in knob.name
            count += 1
    assert count > 3


def test_a_section_of_an_analysis(run, tmp_path):
    """What gradscope suggest finds, in table, JSON, page and in a file that is loaded again."""
    options = {"cell": "lstm", "hidden": 2, "input_size": 1, "steps": 30}
    found, alone = gradscope.analyze(**options, suggest=True), gradscope.suggest(**options)
    told = found.to_dict()
    jsonschema.validate(told, schema())
    assert "carousel" in told["suggestions"][0]["shares"]
    assert told["suggestions"] == alone.to_dict()["suggestions"]
    assert told["advice"] == alone.to_dict()["advice"]
    assert "Settings that reach a gain between 0.001 and 1000" in str(found)
    assert "gradscope suggest" not in str(found)
    found.save(tmp_path / "a.json")
    assert str(gradscope.Analysis.load(tmp_path / "a.json")) == str(found)
    code, page, _ = run("report", tmp_path / "a.json")
    assert code == 0
    assert "What to do about it, verified" in page
    assert found.remedies[0].suggestions[0].words in page
    with pytest.raises(
        InputError, match="suggest is of the whole chain as the network has it: leave cut out"
    ):
        gradscope.analyze(cell="lstm", hidden=2, steps=3, cut="R_o", suggest=True)
    less = gradscope.analyze(**options, suggest=True, only="gain")
    assert "--suggest not measured: --only gain leaves it out." in less.verdict.notes


@pytest.mark.parametrize(
    ("function", "slope", "root"),
    [
        (lambda u: 3 * u - 1, 3.0, 1 / 3),
        (lambda u: u**3 - 8, 0.1, 2.0),
        (lambda u: 5 - math.exp(u), None, math.log(5)),
        (lambda u: 1.0 + u, 1.0, -1.0),
        (lambda u: (u - 4) * (u + 3) - 2 if u < 0 else -14.0, 1.0, -3.27),
    ],
)
def test_a_search_finds_where_the_excess_is_zero(function, slope, root):
    calls = []

    def evaluate(u):
        calls.append(u)
        return function(u)

    search = KnobSearch(evaluate, -10.0, 10.0, 0.0, function(0.0))
    search.run(None if slope is None else -function(0.0) / slope)
    assert len(calls) == len(search.tried) <= MOST
    best = min(search.tried, key=lambda u: abs(search.tried[u]))
    assert best == pytest.approx(root, abs=0.05)


def test_a_search_that_finds_nothing_ends():
    search = KnobSearch(lambda u: -1.0 - u * u, -10.0, 10.0, 0.0, -1.0)
    search.run(2.0)
    assert len(search.tried) <= MOST
    assert {min(search.tried), max(search.tried)} == {-10.0, 10.0}
    assert not search.monotone


OPTIONS = ("--cell", "linear", "--hidden", 2, "--input-size", 1, "--steps", 30, "--init", "gaussian")


def test_command_line(run):
    code, out, err = run("suggest", *OPTIONS, "--gain", 0.2, "--knob", "R", "--json")
    told = json.loads(out)
    jsonschema.validate(told, schema("suggestions"))
    assert code == 0
    assert "1 knob, a dozen analyses of each at most: about" in err
    assert "trying R (1 of 1)" in err
    assert told["suggestions"][0]["reaches"]
    names = {"knob", "value", "was", "reaches", "predicted_log10", "verified_log10", "horizon", "evaluations"}
    assert names <= told["suggestions"][0].keys()
    code, out, _ = run("suggest", *OPTIONS, "--gain", 0.2, "--knob", "R", "--fail-on", "vanishing")
    assert code == 1
    assert "R x " in out


def test_a_target_that_is_reached_asks_for_nothing(run):
    code, out, _ = run("suggest", *OPTIONS, "--gain", 1e-9, "--horizon", 0)
    assert code == 2
    code, out, _ = run("suggest", "--cell", "linear", "--hidden", 2, "--init", "identity", "--steps", 9)
    assert code == 0
    assert "reached already" in out


@pytest.mark.slow
def test_a_gain_that_saturated_gates_keep_is_not_called_well():
    inputs = 1000 + 100 * np.random.default_rng(0).normal(size=(30, 4))
    found = gradscope.suggest(cell="lstm", hidden=6, inputs=inputs)
    page = str(found)
    assert "normalise them" in page
    assert "reached already" in page
    assert "inputs normalised (size now" in page
    verified = gradscope.analyze(
        cell="lstm", hidden=6, inputs=(inputs - inputs.mean(0)) / inputs.std(0), only="gain"
    )
    (one,) = found.suggestions
    assert one.verified_log10 == pytest.approx(verified.full.log10_norm.median, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 30, "horizon": 31}, "--horizon is 31, of 30 steps: give sequences of at least 31"),
        ({"steps": 30, "knob": "b_f"}, "--knob 'b_f': expected one of R"),
        ({"cut": "R"}, "--cut is about an analysis"),
        ({"horizon": 5, "target": "critical"}, "two targets"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options, said):
    with pytest.raises(InputError) as error:
        gradscope.suggest(cell="linear", hidden=2, gain=0.1, **options)
    assert said in error.value.in_shell
