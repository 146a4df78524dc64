"""Clipped and truncated gradients: closed forms, and complex steps through the whole sequence."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.asking import make_problem

import gradscope
from gradscope.gate.baseline import read_entries
from gradscope.gate.metrics import metric
from gradscope.measure.clipping import clipped
from gradscope.measure.lag_sums import LagSums
from gradscope.measure.loss_gradient import loss_gradient
from gradscope.measure.truncation import truncation
from gradscope.problem.clip import clip_of
from gradscope.problem.problems import Problems

B, T, N = 3, 12, 2
SMALL = {"cell": "lstm", "hidden": N, "input_size": 2, "steps": T, "gain": 2.0, "batch": B}


def scalar(tmp_path, w, steps, **options):
    """h_t = w h_(t-1) + 1 from 0, L = h_T."""
    np.savez(tmp_path / "s.npz", W=np.zeros((1, 1)), R=np.full((1, 1), w), b=np.ones(1))
    given = {"checkpoint": tmp_path / "s.npz", "cell": "linear", "inputs": np.zeros((steps, 1))}
    return gradscope.analyze(**given, adjoint=np.ones(1), only="all", **options)


def parts(w, steps):
    """dL/dw by lag, from the last step."""
    lags = np.arange(steps, dtype=float)
    if w == 1:
        return steps - 1 - lags
    return w**lags * (1 - w ** (steps - 1 - lags)) / (1 - w)


@pytest.mark.parametrize(("w", "steps", "length"), [(0.9, 150, 20), (1.0, 70, 30), (1.4, 100, 99)])
def test_truncation_of_a_scalar(tmp_path, w, steps, length):
    """All parts have one sign: the bias is the sum of those left out over that of all."""
    found = scalar(tmp_path, w, steps, tbptt=length).loss.tbptt
    each = parts(w, steps)
    biases = np.array([each[k:].sum() for k in range(1, steps)]) / each.sum()
    np.testing.assert_allclose(found.bias["R"][:-1], biases, rtol=1e-9, atol=1e-14)
    assert found.at("R") == (pytest.approx(biases[length - 1], rel=1e-9), pytest.approx(1))
    assert found.needs("R") == 1 + np.count_nonzero(biases > 0.01)
    # The chunk that the loss is in begins at the last multiple of the length.
    inside = (steps - 1) % length + 1
    assert found.chunks["R"][0] == pytest.approx(each[inside:].sum() / each.sum(), rel=1e-9)


@pytest.mark.slow
def test_the_error_of_what_clipping_leaves():
    """float32 is as far from float64 as it says."""
    given = SMALL | {"adjoint": np.ones(N), "clip": 0.1}
    exact, rough = (gradscope.analyze(**given, dtype=dtype).loss.clip for dtype in ("float64", "float32"))
    assert (exact.factor < 1).any()
    assert 0 < np.abs(exact.factor - rough.factor).max() <= rough.factor_error < 1e-4
    assert exact.factor_error == pytest.approx(rough.factor_error * 2.0**-29, rel=1e-2)


def test_parts_that_float64_alone_would_lose(tmp_path):
    """The last of 1000 lags contributes 1e-600."""
    found = scalar(tmp_path, 0.25, 1000, clip=5).loss.clip
    lags = np.arange(990)
    np.testing.assert_allclose(found.log10_part[:990], lags * np.log10(0.25) - np.log10(0.75), rtol=1e-6)


def test_beyond_the_sequence_the_fitted_decay_alone(tmp_path):
    found = scalar(tmp_path, 0.5, 60, tbptt=80)
    assert found.loss.tbptt.at("R") == (0, 1)
    assert found.loss.tbptt.decay == pytest.approx(0.5, rel=1e-3)
    # sum of w^k, k >= 80, over the sum of all w^k.
    assert found.loss.tbptt.beyond == pytest.approx(0.5**80, rel=0.02)
    assert "nothing is truncated: the sequences have 60 steps" in str(found)
    grows = truncation(10, *[lag_sums(np.linspace(0, 2, 60))] * 3)
    assert (grows.decay > 1, grows.beyond, grows.needs_beyond) == (True, np.inf, None)
    few = truncation(2, *[lag_sums(np.linspace(0, -2, 5))] * 3)
    assert np.isnan([few.decay, few.beyond]).all()


def lag_sums(log10_part):
    """Parts of these sizes, that add up to 1 in size."""
    part, some = {"R": log10_part}, {"R": np.full(len(log10_part), 0.5)}
    return LagSums(part, part, some, some, {"R": 0.0})


def test_slow_decay_names_a_length_beyond(tmp_path):
    """Of w = 0.99 and 100 steps most lies beyond: 1 % of sum of w^k is left after ln(.01)/ln(w) = 459."""
    found = scalar(tmp_path, 0.99, 100, tbptt=50).loss.tbptt
    assert found.beyond > 0.01
    assert found.needs_beyond > 100


def by_lag(problem, seeds):
    """{parameter: (T, shape)} of dL/d(parameter) by lag 1..T, all losses and sequences, by complex steps."""
    system = problem.system
    found = {name: np.zeros((system.steps, *a.shape)) for name, a in system.parameters.items()}
    of_sequence = []
    for b in range(system.batch):
        net = equations.Unrolled("lstm", system.parameters, system.inputs[b], system.state[b], N)
        own = {}
        for name in found:
            each = np.einsum("t...un,un->t...u", net.by_weight(name), seeds[b])
            for tau in range(system.steps):
                for t in range(tau + 1):
                    found[name][tau - t] += each[t, ..., tau]
            own[name] = each.sum(axis=(0, -1))
        of_sequence.append(own)
    return found, of_sequence


def size(arrays):
    return np.sqrt(sum((a**2).sum() for a in arrays))


@pytest.fixture(scope="module")
def lstm():
    """A loss at every step of a batch, its gradients by lag, and those of every sequence."""
    problem = make_problem(**SMALL)
    seeds = np.random.default_rng(7).standard_normal((B, T, N))
    return problem, seeds, *by_lag(problem, seeds)


def asked(lstm, **options):
    problem, seeds, *_ = lstm
    return loss_gradient(replace(problem, adjoint=seeds, **options), False)


def test_truncated_gradient_of_a_loss_at_every_step(lstm):
    found = asked(lstm, tbptt=4).tbptt
    for group in ("R", "W", "all"):
        each = [a for name, a in lstm[2].items() if group in ("all", name[0])]
        whole = [a.sum(axis=0) for a in each]
        for k in range(1, T):
            some = [a[:k].sum(axis=0) for a in each]
            bias = size(w - s for w, s in zip(whole, some, strict=True)) / size(whole)
            cosine = sum((w * s).sum() for w, s in zip(whole, some, strict=True)) / size(whole) / size(some)
            assert found.bias[group][k - 1] == pytest.approx(bias, rel=1e-9)
            assert found.cosine[group][k - 1] == pytest.approx(cosine, rel=1e-9)
        lengths = [k for k in range(1, T) if found.bias[group][k - 1] > 0.01]
        assert found.needs(group) == max(lengths, default=0) + 1


LAWS = {
    "norm:2": lambda g, c: min(1, c / (size(g.values()) + 1e-6)),
    "optax-clip_by_global_norm:2": lambda g, c: min(1, c / size(g.values())),
    "keras-global_clipnorm:2": lambda g, c: min(1, c / size(g.values())),
    "keras-clipnorm:1": lambda g, c: {
        name: min(1, c / size(a for other, a in g.items() if other[0] == name[0])) for name in g
    },
    "value:0.3": lambda g, c: {name: np.clip(a, -c, c) / a for name, a in g.items()},
}


@pytest.mark.parametrize("law", LAWS)
def test_every_law(lstm, law):
    *_, each, of_sequence = lstm
    found = asked(lstm, clip=clip_of(law)).clip
    threshold = float(law.rpartition(":")[2])
    whole = {name: a.sum(axis=0) for name, a in each.items()}

    def weighted(gradient):
        factor = LAWS[law](gradient, threshold)
        of = factor if isinstance(factor, dict) else dict.fromkeys(gradient, factor)
        return of, {name: a * of[name] for name, a in gradient.items()}

    for b, gradient in enumerate(of_sequence):
        of, after = weighted(gradient)
        assert found.log10_norm[b] == pytest.approx(np.log10(size(gradient.values())), abs=1e-10)
        assert found.factor[b] == pytest.approx(size(after.values()) / size(gradient.values()), rel=1e-9)
        inner = sum((gradient[name] * after[name]).sum() for name in gradient)
        cosine = inner / size(gradient.values()) / size(after.values())
        assert found.cosine[b] == pytest.approx(cosine, rel=1e-9)
        assert found.acts[b] == any(np.any(np.asarray(w) < 1) for w in of.values())
    of, _ = weighted(whole)
    assert found.log10_clipped[-1] == -np.inf  # the first step's state is 0
    for k in range(T - 1):
        some = [a[k] * of[name] for name, a in each.items() if name[0] == "R"]
        assert found.log10_clipped[k] == pytest.approx(np.log10(size(some)), abs=1e-8)
    if law.startswith("norm"):
        norms = [size(g.values()) for g in of_sequence]
        assert found.suggested == pytest.approx(np.percentile(norms, 90), rel=1e-9)
        shift = found.log10_clipped[:-1] - found.log10_part[:-1]
        np.testing.assert_allclose(shift, np.log10(found.batch["factor"]), atol=1e-12)


class Gradient:
    def __init__(self, exponent=0, **arrays):
        self.arrays, self.exponent = {k: np.asarray(v, float) for k, v in arrays.items()}, exponent


@pytest.mark.parametrize("exponent", [5000, -5000])
@pytest.mark.parametrize("law", ["norm:1", "value:1", "keras-clipnorm:1"])
def test_beyond_float64(law, exponent):
    found = clipped(Gradient(exponent, R=[3.0, 4.0], b=[0.0]), clip_of(law))
    assert found.log10_norm == pytest.approx(np.log10(5) + exponent * np.log10(2))
    assert found.acts == (exponent > 0)
    assert found.factor == (0 if exponent > 0 else 1)


def test_a_parameter_that_is_two_counts_twice():
    found = clipped(Gradient(R=[3.0], b=[2.0]), clip_of(1), ("b",))
    assert found.log10_norm == pytest.approx(np.log10(np.sqrt(9 + 2 * 4)))
    nothing = clipped(Gradient(R=[0.0]), clip_of(1))
    assert (nothing.factor, nothing.cosine, nothing.acts) == (1, 1, False)


@pytest.mark.parametrize("given", [0, -1, "five", "norm:", "norm:0", "clipnorm:1", "nan", "norm:inf", [1]])
def test_clippings_that_cannot_be_meant(given):
    with pytest.raises(gradscope.InputError, match=r"^clip "):
        clip_of(given)


def test_of_two_directions(lstm):
    """Each has a gradient of its own, and the norm is of both together."""
    problem = replace(lstm[0], adjoint=lstm[1])
    with pytest.raises(gradscope.InputError, match="clip: of all weights together, but of two directions"):
        Problems((problem, problem)).with_training(clip_of(5), None, None)


def test_of_no_loss_and_of_a_loss_that_is_zero(tmp_path):
    with pytest.raises(gradscope.InputError, match="clip and tbptt: of the gradient of a loss, but none"):
        gradscope.analyze(**SMALL, clip=1, tbptt=3)
    with pytest.raises(gradscope.InputError, match="tbptt is 0, expected a whole number, at least 1"):
        gradscope.analyze(**SMALL, tbptt=0)
    found = gradscope.analyze(**SMALL, adjoint=np.zeros(N), clip=1, tbptt=3)
    told = found.to_dict()
    jsonschema.validate(told, gradscope.schema())
    assert told["loss"]["clip"]["clipped_proportion"] == 0
    assert told["loss"]["tbptt"]["bias"] is None
    assert "does not act" in str(found)


@pytest.mark.slow
def test_saved_and_loaded_with_biases_that_are_two(tmp_path):
    """Torch has two of each bias but for the candidate's, which stand apart: the norm counts both."""
    file = layouts.saved(layouts.recurrent("gru", 2, N, dtype="float64"), tmp_path / "m.pt")
    x = np.random.default_rng(2).standard_normal((2, 6, 2))
    given = {"checkpoint": file, "inputs": x, "lengths": [6, 4], "adjoint": np.ones(N)}
    found = gradscope.analyze(**given, clip=1e-3, tbptt=2)
    told = found.to_dict()
    jsonschema.validate(told, gradscope.schema())
    norms = {g["name"]: 10 ** g["log10_norm"] for g in told["loss"]["gradients"]}
    whole = sum(n**2 * (1 + (name in ("b_r", "b_z"))) for name, n in norms.items())
    assert told["loss"]["clip"]["batch"]["log10_norm"] == pytest.approx(np.log10(whole) / 2, abs=1e-10)
    assert told["loss"]["clip"]["clipped_proportion"] == 1
    assert metric(found, "clip_factor").values == tuple(found.loss.clip.factor)  # what a budget is about
    assert metric(found, "tbptt_bias").values == (told["loss"]["tbptt"]["bias"],)
    together = np.sqrt(sum(n**2 for n in norms.values()))
    assert metric(found, "log10_gradient").median == pytest.approx(np.log10(together), abs=1e-12)
    (tmp_path / "told.json").write_text(json.dumps(told))
    read = read_entries(tmp_path / "told.json")[""].metrics
    for name in ("clip_factor", "tbptt_bias", "log10_gradient"):  # of the JSON, and of itself
        assert read[name] == metric(found, name)
    found.save(tmp_path / "saved.json")
    assert str(gradscope.Analysis.load(tmp_path / "saved.json")) == str(found)


def test_from_the_shell(run, tmp_path):
    np.save(tmp_path / "a.npy", np.ones(1))
    small = ["--cell", "linear", "--hidden", "1", "--input-size", "1", "--steps", "70"]
    given = ["analyze", *small, "--adjoint", tmp_path / "a.npy", "--clip"]
    code, out, _ = run(*given, "optax-clip:1e-3", "--tbptt", "5", "--json")
    told = json.loads(out)["loss"]
    assert (code, told["clip"]["law"], told["tbptt"]["length"]) == (0, "optax-clip", 5)
    assert run(*given, "clip:1")[0::2] == (
        2,
        "gradscope: error: --clip 'clip:1': no clipping is called 'clip', expected a threshold alone or "
        "LAW:THRESHOLD with one of norm, value, keras-clipnorm, keras-global_clipnorm, keras-clipvalue, "
        "optax-clip_by_global_norm, optax-clip\n",
    )
