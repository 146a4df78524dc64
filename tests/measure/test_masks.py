"""Chains with masks of training, held against the equations with the same masks."""

import json

import jax
import jsonschema
import numpy as np
import pytest
from oracles import equations
from oracles.asking import make_problem

import gradscope
from gradscope.measure.batch import Means, measure_batch
from gradscope.problem.layers import Problems
from gradscope.problem.masked import check_masks, masked_problems
from gradscope.problem.masks import Drawn, drawn_of
from gradscope.settings import Settings

T, N, D = 6, 3, 2
SMALL = {"hidden": N, "input_size": D, "steps": T, "gain": 2.0, "batch": 2}
LAWS = {"h_detach": 0.4, "recurrent_dropout": 0.3, "zoneout": "0.5,0.2"}


def log10_gain(cell, law, parameters, inputs, masks):
    """log10 of the largest singular value of the product along the network with these masks (T, width)."""
    step = equations.CELLS[cell][0]
    recurrent = [key for key in gradscope.cells.find(cell).paths if key.startswith("R")]
    state = np.zeros(2 * N if cell.startswith("lstm") else N)
    product = np.eye(len(state))
    for x, mask in zip(inputs, masks, strict=True):
        parts = dict(zip(recurrent, mask.reshape(len(recurrent), -1), strict=True)) if law[0] == "r" else {}

        def use(path, value, mask=mask, parts=parts):
            if path in parts:
                return value * parts[path]
            detached = law == "h-detach" and path in recurrent
            return value.real + 1j * mask[0] * value.imag if detached else value

        def after(s, x=x, mask=mask, use=use):
            new = step(parameters, x, s, use)
            return mask * s + (1 - mask) * new if law == "zoneout" else new

        columns = [after(one).imag / equations.H for one in equations.nudged(state)]
        product = np.stack(columns, axis=1) @ product
        state = after(state).real
    return np.log10(np.linalg.svd(product, compute_uv=False)[0])


def measured(problem):
    """log10 gain of every sequence."""
    (each,) = measure_batch(Problems((problem,)), range(problem.system.batch), -3, Means(jax.local_devices()))
    return [one.full.log10_singular_values[0] for one in each]


@pytest.mark.parametrize(
    ("cell", "option"),
    [("lstm-peephole", "h_detach"), ("gru-reset-before", "recurrent_dropout"), ("lstm-peephole", "zoneout")],
)
def test_each_mask_is_the_equations_with_it(cell, option):
    problem = make_problem(cell=cell, **SMALL)
    drawn = drawn_of(Settings(**{option: LAWS[option]}, masks=3))
    for times, one in zip((3, 1), masked_problems(problem, drawn), strict=True):
        gains = []
        for number, row in enumerate(one.system.inputs):
            assert (row[:, :D] == problem.system.inputs[number // times]).all()
            parameters = problem.system.parameters
            gains.append(log10_gain(cell, drawn.law, parameters, row[:, :D], row[:, D:]))
        np.testing.assert_allclose(measured(one), gains, rtol=0, atol=1e-7)
        assert len(set(np.round(gains, 9))) > times  # the masks of a sequence are not one


@pytest.mark.slow
def test_probabilities_at_their_ends():
    """Of h-detach p = 0 is the full chain, p = 1 the carousel, and the mean that of --scale."""
    fewer = {"only": "gain", "top": 1, "cell": "lstm", **SMALL}
    plain, scaled = make_problem(**fewer), make_problem(**fewer, scale="R_*=0.6")
    cut = make_problem(**fewer, cut=["R_z", "R_i", "R_f", "R_o"])

    def detached(problem, p):
        return [measured(one) for one in masked_problems(problem, Drawn("h-detach", (p,), 1, 0))]

    np.testing.assert_allclose(detached(plain, 1.0), [measured(cut)] * 2, atol=1e-9)
    np.testing.assert_allclose(detached(scaled, 0.0), [measured(scaled)] * 2, atol=1e-9)
    np.testing.assert_allclose(detached(plain, 0.4)[1], measured(scaled), atol=1e-9)
    np.testing.assert_allclose(detached(cut, 0.5), [measured(cut)] * 2, atol=1e-9)


def test_masks_have_their_laws():
    problem = make_problem(cell="lstm", hidden=8, input_size=1, steps=500, batch=1)
    masks = {
        option: masked_problems(problem, drawn_of(Settings(**{option: value}, masks=40)))[0].system.inputs[
            ..., 1:
        ]
        for option, value in LAWS.items()
    }
    assert masks["h_detach"].mean() == pytest.approx(0.6, abs=0.02)
    dropped = masks["recurrent_dropout"]
    assert (dropped == dropped[:, :1]).all()
    assert set(np.unique(dropped)) == {0.0, 1 / 0.7}
    assert dropped.mean() == pytest.approx(1, abs=0.06)
    kept = masks["zoneout"].mean(axis=(0, 1))
    np.testing.assert_allclose(kept, np.repeat([0.5, 0.2], 8), atol=0.02)
    again, other = (
        masked_problems(problem, Drawn("h-detach", (0.4,), 40, seed))[0].system.inputs for seed in (0, 1)
    )
    assert (again[..., 1:] == masks["h_detach"]).all()
    assert not (again == other).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"h_detach": 1.5}, "h_detach is 1.5, expected a probability, at least 0 and at most 1"),
        ({"recurrent_dropout": 1.0}, "expected a probability, at least 0 and below 1"),
        ({"zoneout": "a"}, "zoneout is 'a', expected a probability such as 0.25"),
        ({"zoneout": "0.1,0.2,0.3"}, "expected one probability"),
        ({"h_detach": 0.1, "zoneout": 0.1}, "expected one of them at a time"),
        ({"h_detach": 0.1, "masks": 0}, "masks is 0, expected a whole number"),
        ({"h_detach": 0.1, "view": "cell"}, "is of the chain of the whole state"),
        ({"zoneout": (0.1, 0.2), "cell": "rnn"}, "has two probabilities, but the state of cell rnn"),
    ],
)
def test_masks_that_cannot_be_meant(given, message):
    with pytest.raises(gradscope.InputError) as error:
        gradscope.analyze(**{"cell": "lstm", **SMALL, **given})
    assert message in str(error.value)


def test_of_several_layers_and_of_a_cell_without_paths():
    problem = make_problem(cell="lstm", **SMALL)
    drawn = Drawn("h-detach", (0.1,), 2, 0)
    with pytest.raises(gradscope.InputError, match="h_detach is of one layer: choose one with layer"):
        check_masks([problem, problem], drawn)
    rnn = gradscope.cells.find("rnn")
    pathless = gradscope.Cell("mine", rnn.parameters, lambda p, x, s: s)
    with pytest.raises(gradscope.InputError, match="names no path R"):
        check_masks([make_problem(cell=pathless, **SMALL)], drawn)


def test_from_the_shell(run, tmp_path):
    given = {"hidden": N, "input_size": D, "steps": T, "cell": "rnn", "top": 1}
    found = gradscope.analyze(**given, zoneout=0.5, masks=4)
    assert "Gain with zoneout of probability 0.5" in str(found)
    assert "4 drawn" in str(found)
    found.save(tmp_path / "a.json")
    assert str(gradscope.Analysis.load(tmp_path / "a.json")) == str(found)
    shell = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    code, out, err = run("analyze", *shell, "--zoneout", "0.5", "--masks", "4", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    jsonschema.validate(told, gradscope.schema())
    assert told["masks"] == found.to_dict()["masks"]
    assert (told["masks"]["law"], told["masks"]["probability"]) == ("zoneout", [0.5])
    assert len(told["masks"]["log10_norms"][0]) == 4
