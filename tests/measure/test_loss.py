"""Gradients of a loss by lag, deltas and shares, held against complex steps and closed forms."""

import json
import re
import subprocess
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.agreement import check_schema, check_shorter_sequence
from oracles.asking import make_problem
from oracles.program import ANALYZE, together

import gradscope
from gradscope.checkpoints.found import Named
from gradscope.cli.main import main
from gradscope.measure import adjoints
from gradscope.measure.loss import LossGradient
from gradscope.measure.loss_gradient import loss_gradient
from gradscope.problem.loss_adjoint import with_loss
from gradscope.report.json import lags

B, T, N = 2, 9, 4


def followed(problem, adjoint, **options):
    """The gradient of the loss with these derivatives by the outputs."""
    return loss_gradient(replace(problem, adjoint=adjoint), False, **options)


def changed(problem, **fields):
    """The same question of another system."""
    return replace(problem, system=replace(problem.system, **fields))


def problem_of(cell, **options):
    return make_problem(cell=cell, hidden=N, input_size=3, steps=T, gain=1.5, **options)


def last(seed, steps):
    """The same seed as (T, n)."""
    return np.concatenate([np.zeros((steps - 1, len(seed))), [seed]])


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("cell", "every", "cut"),
    [
        ("lstm", False, ()),
        ("lstm", True, ()),
        ("gru", True, ()),
        ("rnn", True, ()),
        slow("gru", False, ()),
        slow("rnn", False, ()),
        slow("lstm", True, ("R_z", "carousel")),
        slow("gru-reset-before", True, ()),
        slow("gru-reset-before", False, ("R_z",)),
        *(slow(cell, True, ()) for cell in equations.CELLS if cell.startswith("lstm-")),
    ],
)
def test_against_complex_steps(cell, every, cut):
    """Every derivative again from the equations run with that one state or weight nudged."""
    problem = problem_of(cell, batch=2, cut=cut)
    system = problem.system
    steps, n = system.steps, system.hidden
    seeds = np.random.default_rng(5).standard_normal((2, steps if every else 1, n))
    found = followed(problem, seeds)
    assert found.at == ("every" if every else "last")

    by_step = {name: np.zeros((steps, *array.shape)) for name, array in system.parameters.items()}
    by_lag = {name: np.zeros((steps, *array.shape)) for name, array in system.parameters.items()}
    for b in range(2):
        net = equations.Unrolled(cell, system.parameters, system.inputs[b], system.state[b], n, cut)
        all_seeds = seeds[b] if every else last(seeds[b, 0], steps)
        adjoints = [np.tensordot(net.by_state(t), all_seeds, 2) for t in range(steps, -1, -1)]
        norms = np.log10([np.linalg.norm(a) for a in adjoints])
        np.testing.assert_allclose(found.log10_norm[b], norms, rtol=0, atol=1e-12)
        for name in system.parameters:
            # d(e_tau . h_tau)/d(weight as step t uses it), (t, *shape, tau).
            parts = np.einsum("...tn,tn->...t", net.by_weight(name), all_seeds)
            each = parts.sum(axis=-1)
            by_step[name] += each
            if name.startswith("b"):
                gate = "d" + name[1:].strip("_")
                np.testing.assert_allclose(found.deltas[gate][b], each, rtol=1e-11, atol=1e-14)
                with np.errstate(divide="ignore"):
                    logs = np.log10(np.linalg.norm(each, axis=1))
                np.testing.assert_allclose(found.log10_deltas[gate][b, ::-1], logs, rtol=0, atol=1e-10)
            for tau in range(steps):
                for t in range(tau + 1):
                    by_lag[name][tau - t] += parts[t, ..., tau]
    for name, each in by_step.items():
        norm = np.log10(np.linalg.norm(each.sum(axis=0)))
        np.testing.assert_allclose(found.log10_gradients[name], norm, rtol=0, atol=1e-11)
    for kind in "RW":
        names = [name for name in by_lag if name.startswith(kind)]
        assert set(found.kinds[kind]) == set(names)
        whole = sum((by_lag[name].sum(axis=0) ** 2).sum() for name in names)
        for name in names:
            expected = [(part * by_lag[name].sum(axis=0)).sum() / whole for part in by_lag[name]]
            np.testing.assert_allclose(found.shares[name], expected, rtol=1e-9, atol=1e-12)


# Losses at the last step, at every step, and the parts of dL/dw by lag 1, 2, ... for h_t = w^t x.
@pytest.mark.parametrize("every", [False, True])
def test_scalar_linear_rnn(every):
    """dL/dw = sum over the losses of t w^(t-1) x, of which every lag has w^(t-1) x."""
    steps, w, x = 51, 0.9, 3.0
    problem = changed(scalar(steps, w), state=np.full((1, 1), x))
    losses = np.arange(1, steps + 1) if every else np.array([steps])
    found = followed(problem, np.ones((1, len(losses), 1)))
    by_lag = np.array([(w ** (losses[losses >= k] - 1.0) * x).sum() for k in range(1, steps + 1)])
    assert found.log10_gradients["R"] == pytest.approx(np.log10((losses * w ** (losses - 1.0) * x).sum()))
    np.testing.assert_allclose(found.shares["R"], by_lag / by_lag.sum(), rtol=1e-12)
    norms = [sum(w ** (t - (steps - k)) for t in losses if t >= steps - k) for k in range(steps + 1)]
    norms[-1] = (w**losses).sum()
    np.testing.assert_allclose(found.log10_norm[0], np.log10(norms), rtol=0, atol=1e-13)
    assert np.isnan(found.shares["W"]).all()  # there is no input
    assert found.lag_within(0.5, ["W"]) is None
    if not every:
        assert (found.lag_within(0.5, ["R"]), found.lag_within(0.01, ["R"])) == (26, 51)


def scalar(steps, w):
    """h_t = w h_(t-1), from 0."""
    problem = make_problem(cell="linear", hidden=1, input_size=1, steps=steps, inputs="zeros")
    return changed(problem, parameters={"W": np.ones((1, 1)), "R": np.full((1, 1), w), "b": np.zeros(1)})


@pytest.mark.parametrize("w", [0.5, 2.0])
def test_beyond_float64(w):
    """dL/ds_(T-k) = w^k; dL/db = sum_k w^k; no number on the way ends at 1e-308 or 1e308."""
    steps = 3000
    found = followed(scalar(steps, w), np.ones((1, 1, 1)))
    logs = np.arange(steps + 1) * np.log10(w)
    np.testing.assert_allclose(found.log10_norm[0], logs, rtol=1e-14)
    np.testing.assert_allclose(found.log10_deltas["d"][0], logs[:-1], rtol=1e-14)
    assert found.log10_gradients["b"] == pytest.approx(np.log10(2.0) if w < 1 else logs[-1], rel=1e-14)
    assert found.deltas["d"][0, 0, 0] == (0.0 if w < 1 else np.inf)


@pytest.mark.parametrize("every", [True, slow(False)])
def test_segments_and_groups_change_nothing(every, monkeypatch):
    problem = problem_of("lstm", batch=2)
    seeds = np.random.default_rng(1).standard_normal((2, problem.system.steps if every else 1, 4))
    whole = followed(problem, seeds)
    fours = classmethod(lambda cls, steps, *_: cls(steps, 4, -(-steps // 4)))  # the last of them padded
    monkeypatch.setattr(adjoints.Segments, "cover", fours)
    monkeypatch.setattr(adjoints, "_TOGETHER", 6)
    reports = []
    parts = followed(problem, seeds, progress=lambda *report: reports.append(report))
    np.testing.assert_allclose(parts.log10_norm, whole.log10_norm, rtol=0, atol=1e-13)
    for name in whole.shares:
        np.testing.assert_allclose(parts.shares[name], whole.shares[name], rtol=1e-10, atol=1e-15)
        assert parts.log10_gradients[name] == pytest.approx(whole.log10_gradients[name], abs=1e-13)
    for gate in whole.deltas:
        np.testing.assert_allclose(parts.deltas[gate], whole.deltas[gate], rtol=1e-11, atol=1e-15)
    done = [share for share, _ in reports]
    assert done == sorted(done)
    assert reports[-1] == (pytest.approx(2), 2)


SMALL = {"cell": "lstm", "hidden": 4, "input_size": 3, "steps": 9, "gain": 1.5}


def test_shares_are_conserved_and_gains_bounded():
    """Shares sum to 1, |dL/ds_(T-k)| <= |e| sigma_1 of lag k."""
    seed = np.array([1.0, -2.0, 0.5, 3.0])
    analysis = gradscope.analyze(**SMALL, adjoint=seed)
    found = analysis.loss
    for names in found.kinds.values():
        assert sum(map(found.share, names)) == pytest.approx(1, abs=1e-13)
        assert all(found.share(name) >= 0 for name in names)
    room = np.log10(np.linalg.norm(seed)) + analysis.full.by_lag[0] - found.log10_norm[0, 1:]
    assert (room > -1e-12).all()
    assert found.log10_norm[0, 0] == pytest.approx(np.log10(np.linalg.norm(seed)))


@pytest.mark.slow
def test_beside_the_top_values_alone():
    whole, top = (gradscope.analyze(**SMALL, adjoint=np.ones(4), top=top) for top in ("all", 1))
    np.testing.assert_array_equal(top.loss.log10_norm, whole.loss.log10_norm)
    jsonschema.validate(top.to_dict(), gradscope.schema())


def test_a_loss_without_gradient():
    found = followed(problem_of("lstm"), np.zeros((1, 1, 4)))
    assert (found.log10_norm == -np.inf).all()
    assert set(found.log10_gradients.values()) == {-np.inf}
    assert json.dumps(found.to_dict(lags(9))["reach"]) == json.dumps(
        {kind: {"half": None, "most": None} for kind in "RW"}
    )


def test_single_precision():
    problem = problem_of("rnn", dtype="float32")
    seeds = np.random.default_rng(2).standard_normal((1, 9, 4))
    single, double = (followed(changed(problem, dtype=dtype), seeds) for dtype in ("float32", "float64"))
    np.testing.assert_allclose(single.log10_norm, double.log10_norm, rtol=0, atol=1e-5)
    assert sum(map(single.share, single.kinds["R"])) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("prefix", ["layer0.", "_"])
def test_parameters_of_other_names(prefix):
    """A stack names its layers; a cell whose names say nothing has norms, and no deltas or shares."""
    problem, seeds = problem_of("rnn"), np.ones((1, 9, 4))
    cell = problem.system.cell
    renamed = gradscope.Cell(
        name="renamed",
        parameters=lambda n, d: {prefix + key: shape for key, shape in cell.parameters(n, d).items()},
        step=lambda p, x, s: cell.advance({key.removeprefix(prefix): a for key, a in p.items()}, x, s),
    )
    arrays = {prefix + key: array for key, array in problem.system.parameters.items()}
    plain, found = (
        followed(one, seeds) for one in (problem, changed(problem, cell=renamed, parameters=arrays))
    )
    assert found.log10_gradients[prefix + "R"] == pytest.approx(plain.log10_gradients["R"], abs=1e-12)
    np.testing.assert_allclose(found.log10_norm, plain.log10_norm, rtol=0, atol=1e-12)
    if prefix == "_":
        assert found.kinds == found.deltas == found.shares == {}
    else:
        np.testing.assert_allclose(found.deltas["layer0.d"], plain.deltas["d"], rtol=1e-11, atol=1e-15)
        np.testing.assert_allclose(found.shares["layer0.R"], plain.shares["R"], rtol=1e-11, atol=1e-15)


def test_json_of_a_long_run_keeps_the_sum_of_the_shares():
    steps = 3000
    rng = np.random.default_rng(0)
    share = rng.standard_normal(steps)
    share /= share.sum()
    norms = np.zeros((2, steps + 1))
    found = LossGradient("last", norms, {}, {"dz": norms[:, 1:]}, {"R_z": 0.0}, {"R_z": share})
    shown = lags(steps)
    told = found.to_dict(shown)
    assert 900 < len(shown) == len(told["profile"]["lag"]) - 1 == len(told["deltas"]["dz"])
    assert told["share"]["R_z"].sum() == pytest.approx(1)
    assert told["share"]["R_z"][-1] == pytest.approx(share[shown[-2] :].sum())


HEAD = Named("head.weight", np.arange(8.0).reshape(2, N))  # W^T 1 = 4, 6, 8, 10


@pytest.mark.parametrize(
    ("batch", "given", "expected"),
    [
        (1, {"adjoint": np.arange(4.0)}, np.arange(4.0).reshape(1, 1, 4)),
        (2, {"adjoint": np.arange(4.0)}, np.tile(np.arange(4.0), (2, 1, 1))),
        (2, {"adjoint": np.ones((B, N))}, np.ones((B, 1, N))),
        (2, {"adjoint": np.ones((B, T, N))}, np.ones((B, T, N))),
        (1, {"adjoint": np.ones((T, N))}, np.ones((1, T, N))),
        (1, {"readout": HEAD}, np.array([[[4.0, 6.0, 8.0, 10.0]]])),
        (2, {"readout": HEAD, "readout_at": "every"}, np.tile([4.0, 6.0, 8.0, 10.0], (B, T, 1))),
        (1, {"readout": Named("layers/dense/vars/0", HEAD.values.T)}, np.array([[[4.0, 6.0, 8.0, 10.0]]])),
        (1, {"readout": Named("params.head.kernel", np.eye(4)[:, :3])}, np.array([[[1.0, 1.0, 1.0, 0.0]]])),
        (1, {"readout": Named("head.weight", np.diag([1.0, 2, 3, 4]))}, np.array([[[1.0, 2.0, 3.0, 4.0]]])),
        (1, {"readout": Named("val_78", HEAD.values)}, np.array([[[4.0, 6.0, 8.0, 10.0]]])),
        (1, {"readout": Named("val_78", HEAD.values.T)}, np.array([[[4.0, 6.0, 8.0, 10.0]]])),
    ],
)
def test_seeds(batch, given, expected):
    np.testing.assert_array_equal(with_loss(problem_of("rnn", batch=batch), **given).adjoint, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adjoint": np.ones((3, N))}, "adjoint has shape (3, 4), expected (4,) or (2, 4) at the last step"),
        ({"adjoint": np.ones((T, N))}, "adjoint has shape (9, 4), expected"),
        ({"adjoint": [1.0, np.nan]}, "adjoint holds nan"),
        ({"adjoint": np.full(N, 1e300)}, "go beyond float32"),
        ({"readout": HEAD, "adjoint": np.ones(N)}, "two losses: give one"),
        ({"readout_at": "every"}, "without readout: give both"),
        ({"readout_at": "every", "adjoint": np.ones(N)}, "the shape of the adjoint says"),
        ({"readout": HEAD, "readout_at": "first"}, "expected last or every"),
        ({"readout": Named("head.weight", np.ones((2, 5)))}, "reads 5 features, the layer puts out 4"),
        ({"readout": Named("head.kernel", np.ones((2, 4)))}, "reads 2 features, the layer puts out 4"),
        ({"readout": Named("val", np.ones((2, 5)))}, "reads 5 features, the layer puts out 4"),
        ({"readout": Named("val", np.ones((4, 4)))}, "square, and its name does not say"),
        ({"readout": Named("head.bias", np.ones(4))}, "expected the matrix of a Linear"),
    ],
)
def test_losses_that_cannot_be_meant(given, message):
    with pytest.raises(gradscope.InputError, match=re.escape(message)) as error:
        with_loss(problem_of("rnn", batch=B, dtype="float32"), **given)
    assert "\n" not in str(error.value)


def test_more_refusals(monkeypatch, tmp_path):
    with pytest.raises(gradscope.InputError, match="view 'cell' is of the cell state alone"):
        with_loss(problem_of("lstm", view="cell"), adjoint=np.ones(N))
    with pytest.raises(gradscope.InputError, match="readout is 'head', but that is about a checkpoint"):
        gradscope.analyze(cell="rnn", readout="head")
    monkeypatch.setattr("gradscope.problem.loss_adjoint.available", lambda: 1000)
    with pytest.raises(gradscope.InputError, match="the deltas of 1 sequence of 9 steps need about"):
        with_loss(problem_of("lstm"), adjoint=np.ones(N))


STATE = layouts.recurrent("lstm", 3, N, bidirectional=True, prefix="lstm.", dtype="float64") | layouts.dense(
    "head", N, 2, dtype="float64"
)
X = np.random.default_rng(3).standard_normal((B, T, 3))


@pytest.fixture
def model(tmp_path):
    """A file of what --readout is for: y = head(lstm(x)), and both directions of another."""
    return layouts.saved(STATE, tmp_path / "model.pt")


def check_weights(found, end, inputs, seeds):
    """Norms of the gradients are those of complex steps; inputs and seeds (T, .) as the layer reads them."""
    p = layouts.equations_of("lstm", {key.removeprefix("lstm."): a for key, a in STATE.items()}, end)
    nets = [equations.Unrolled("lstm", p, x, np.zeros(2 * N), N) for x in inputs]
    for name in p:
        gradient = sum(
            np.einsum("s...tn,tn->...", net.by_weight(name), seed)
            for net, seed in zip(nets, seeds, strict=True)
        )
        assert found[name] == pytest.approx(np.log10(np.linalg.norm(gradient)), abs=1e-11)


@pytest.mark.parametrize("at", ["last", "every"])
def test_readout_of_a_model(at, model, run, tmp_path):
    """The gradient of the sum of what the head puts out; the JSON holds to its schema."""
    np.save(tmp_path / "x.npy", X)
    given = [model, "--layer", "lstm.l0", "--inputs", tmp_path / "x.npy", "--readout", "head"]
    code, out, _ = run("analyze", *given, "--readout-at", at, "--json")
    assert code == 0
    told = json.loads(out)
    jsonschema.validate(told, gradscope.schema())
    assert (told["problem"]["readout"], told["problem"]["readout_at"]) == ("head.weight", at)
    assert told["loss"]["at"] == at
    seed = STATE["head.weight"].sum(axis=0)
    seeds = np.tile(seed, (B, T, 1)) if at == "every" else np.stack([last(seed, T)] * B)
    check_weights({g["name"]: g["log10_norm"] for g in told["loss"]["gradients"]}, "_l0", X, seeds)
    for kind in "RW":
        shares = [share for name, share in told["loss"]["share"].items() if name[0] == kind]
        assert np.sum(shares) == pytest.approx(1)


def test_adjoint_of_a_backward_layer(model, tmp_path):
    """The time of an adjoint of every step is that of the inputs, whichever way the layer reads them."""
    seeds = np.random.default_rng(4).standard_normal((B, T, N))
    np.save(tmp_path / "adjoint.npy", seeds)
    given = {"checkpoint": model, "layer": "lstm.l0_reverse", "inputs": X}
    analysis = gradscope.analyze(**given, adjoint=tmp_path / "adjoint.npy")
    check_weights(analysis.loss.log10_gradients, "_l0_reverse", X[:, ::-1], seeds[:, ::-1])


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_each_sequence_over_its_own_length(every, model):
    """Gradients add up; lags are counted from the end of each; beyond its length nothing is known."""
    seeds = np.random.default_rng(6).standard_normal((B, T, N) if every else (B, N))
    lengths = [T, 5]
    options = {"checkpoint": model, "layer": "lstm.l0_reverse"}
    found = gradscope.analyze(**options, inputs=X, lengths=lengths, adjoint=seeds)
    # The backward direction's own last step is the first of the sequence.
    read = [x[:length][::-1] for x, length in zip(X, lengths, strict=True)]
    sent = [
        seed[:length][::-1] if every else last(seed, length)
        for seed, length in zip(seeds, lengths, strict=True)
    ]
    check_weights(found.loss.log10_gradients, "_l0_reverse", read, sent)
    alone = gradscope.analyze(**options, inputs=X[1, :5], adjoint=seeds[1, :5] if every else seeds[1])
    check_shorter_sequence(found.loss, alone.loss, length=5)
    check_schema(found)


def test_wrong_readout_is_one_line(model, capsys):
    given = [str(model), "--layer", "lstm.l0", "--readout", "tail"]
    assert main(["analyze", *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("holds no tensor 'tail', expected one of head\n")


def test_an_adjoint_is_not_written_over(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones(4))
    path = str(tmp_path / "a.npy")
    assert main(["analyze", "--hidden", "4", "--adjoint", path, "-o", path]) == 2
    assert "is a file to be read" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(4))
    small = ["--hidden", "4", "--input-size", "2", "--steps", "9", "--batch", "3", "--json"]
    arguments = [*small, "--adjoint", str(tmp_path / "a.npy")]
    alone = subprocess.run([*ANALYZE, *arguments], capture_output=True, check=True, timeout=120)
    (code, out, _), other = together(2, arguments)
    assert (code, other[0]) == (0, 0)
    assert json.loads(out) == json.loads(alone.stdout)
