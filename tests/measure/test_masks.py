"""Chains with masks of training, held against the equations with the same masks."""

import json

import jax
import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.asking import make_problem, make_problems

import gradscope
from gradscope.checkpoints import read
from gradscope.gate.baseline import read_entries
from gradscope.gate.metrics import metric
from gradscope.measure.batch import Means, measure_batch
from gradscope.problem.masked import check_masks, masked_problems
from gradscope.problem.masks import Drawn, drawn_of
from gradscope.problem.problems import Problems
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
    [
        ("lstm-peephole", "h_detach"),
        pytest.param("gru-reset-before", "recurrent_dropout", marks=pytest.mark.slow),
        pytest.param("lstm-peephole", "zoneout", marks=pytest.mark.slow),
    ],
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


def test_small_chains_whose_jacobians_are_sooner(monkeypatch):
    """As users have them, which the suite has otherwise: a cell reads its masks after its inputs."""
    problem = make_problem(cell="rnn", **SMALL)
    one, _ = masked_problems(problem, drawn_of(Settings(zoneout="0.5", masks=2)))  # slopes of 0 among them
    along = measured(one)
    monkeypatch.setattr("gradscope.measure.batch.sooner_without_jacobians", lambda _: False)
    np.testing.assert_allclose(measured(one), along, rtol=0, atol=1e-9)


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
        ({"h_detach": 0.1, "zoneout": 0.1}, "h_detach and zoneout: expected one of them at a time"),
        ({"h_detach": 0.1, "masks": 0}, "masks is 0, expected a whole number"),
        ({"h_detach": 0.1, "view": "cell"}, "is of the chain of the whole state"),
        ({"zoneout": (0.1, 0.2), "cell": "rnn"}, "has two probabilities, but the state of cell rnn"),
    ],
)
def test_masks_that_cannot_be_meant(given, message):
    with pytest.raises(gradscope.InputError) as error:
        gradscope.analyze(**{"cell": "lstm", **SMALL, **given})
    assert message in str(error.value)


def file_of(kind, folder, bidirectional=False, layers=2):
    state = layouts.recurrent(
        kind, D, N, layers=layers, bidirectional=bidirectional, scale=2.0, dtype="float64"
    )
    return state, layouts.saved(state, folder / "m.safetensors")


def own_masks(path, drawn, x, cell=None):
    """The problems with masks of every group of a file's layers, and with mean masks."""
    problems = make_problems(read(path, cell), jax.local_devices(), inputs=x)
    return [masked_problems(one.problem, drawn, number) for number, one in enumerate(problems.groups)]


def stacked_gain(kind, state, law, x, masks):
    """log10 gain of two layers, one upon the other, with these masks (T, width of both)."""
    step, size = equations.CELLS[kind][0], 2 * N if kind == "lstm" else N
    weights = [layouts.equations_of(kind, state, f"_l{k}") for k in range(2)]
    recurrent = [key for key in gradscope.cells.find(kind).paths if key.startswith("R")]

    def last(start):
        states = np.split(start, 2)
        for below, both in zip(x, masks, strict=True):
            for k, mask in enumerate(np.split(both, 2)):

                def use(path, value, mask=mask):
                    if path not in recurrent or law == "zoneout":
                        return value
                    if law == "h-detach":
                        return value.real + 1j * mask[0] * value.imag
                    return value * mask.reshape(len(recurrent), -1)[recurrent.index(path)]

                new = step(weights[k], below, states[k], use)
                states[k] = mask * states[k] + (1 - mask) * new if law == "zoneout" else new
                below = states[k][-N:]
        return np.concatenate(states)

    columns = [last(one).imag / equations.H for one in equations.nudged(np.zeros(2 * size))]
    return np.log10(np.linalg.norm(np.stack(columns, axis=1), 2))


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        pytest.param("lstm", "h_detach", marks=pytest.mark.slow),
        pytest.param("gru", "recurrent_dropout", marks=pytest.mark.slow),
        pytest.param("lstm", "zoneout", marks=pytest.mark.slow),
    ],
)
def test_each_layer_of_a_stack_has_masks_of_its_own(kind, option, tmp_path):
    state, path = file_of(kind, tmp_path)
    x = np.random.default_rng(1).standard_normal((T, D))
    drawn = drawn_of(Settings(**{option: LAWS[option]}, masks=2))
    ((with_masks, mean),) = own_masks(path, drawn, x)
    for one in (with_masks, mean):
        gains = [stacked_gain(kind, state, drawn.law, x, row[:, D:]) for row in one.system.inputs]
        np.testing.assert_allclose(measured(one), gains, rtol=0, atol=1e-7)
    assert len(set(gains)) == 1 < len(set(measured(with_masks)))


def gains_of(chain):
    return [float(spectrum.log10_singular_values[0]) for spectrum in chain.spectra]


def test_of_two_directions_each_has_masks_and_the_larger_gain_counts(tmp_path):
    state, path = file_of("rnn", tmp_path, bidirectional=True, layers=1)
    x = np.random.default_rng(1).standard_normal((T, D))
    found = gradscope.analyze(checkpoint=path, cell="rnn", inputs=x, zoneout=0.4, masks=3)
    directions = own_masks(path, Drawn("zoneout", (0.4,), 3, 0), x, "rnn")
    for row in range(3):
        gains = [
            log10_gain(
                "rnn", "zoneout", layouts.equations_of("rnn", state, end), xs[row, :, :D], xs[row, :, D:]
            )
            for xs, end in zip(
                (one.system.inputs for one, _ in directions), ("_l0", "_l0_reverse"), strict=True
            )
        ]
        assert gains_of(found.masks.drawn)[row] == pytest.approx(max(gains), abs=1e-7)
    forward, backward = (one.system.inputs[:, :, D:] for one, _ in directions)
    assert not (forward == backward).all()
    assert "every layer draws its own" in str(found)


def test_of_a_cell_without_paths():
    drawn = Drawn("h-detach", (0.1,), 2, 0)
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
    for name in ("log10_norm", "rate", "horizon"):  # what a budget is about, of the JSON and of itself
        extremes, limited = told["masks"][name], metric(found, f"masked_{name}")
        assert (limited.median, limited.highest) == (extremes["median"], extremes["max"])
    (tmp_path / "told.json").write_text(out)
    read = read_entries(tmp_path / "told.json")[""].metrics
    assert read["masked_log10_norm"] == metric(found, "masked_log10_norm")
    assert read["masked_rate"].error == pytest.approx(metric(found, "masked_rate").error)
    assert (told["masks"]["law"], told["masks"]["probability"]) == ("zoneout", [0.5])
    assert len(told["masks"]["log10_norms"][0]) == 4
