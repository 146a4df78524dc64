"""d log10 sigma_1 / d(parameter), held against central differences of the equations and closed forms."""

import json
from dataclasses import replace

import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.any_exponent import elasticity, step_of

import gradscope
from gradscope.errors import InputError
from gradscope.linearize.system import precise
from gradscope.measure import log_norm_adjoint
from gradscope.measure.derivative_passes import Derivative
from gradscope.measure.sensitivity import concluded
from gradscope.schemas import schema

N, D, T = 4, 3, 6
LN10 = np.log(10.0)
# Of central differences over 2 STEP: its square, and rounding over it.
STEP, CLOSE = 1e-5, 2e-8


def analyze(cell, **options):
    return gradscope.analyze(
        **{"cell": cell, "hidden": N, "input_size": D, "steps": T, "sensitivity": True} | options
    )


def drawn(cell, batch=1, seed=0, scale=1.5):
    """Parameters, inputs and a state of a cell, all away from 0."""
    rng = np.random.default_rng(seed)
    shapes = gradscope.cells.find(cell).shapes(N, D)
    p = {key: scale * rng.standard_normal(shape) / 2 for key, shape in shapes.items()}
    return p, rng.standard_normal((batch, T, D)), rng.standard_normal(2 * N if "lstm" in cell else N) / 2


def saved(folder, p, state=None):
    """A native file of parameters, and of the state that they begin with."""
    parts = {} if state is None else dict(zip(("c0", "h0"), np.split(state, 2), strict=True))
    np.savez(folder / "cell.npz", **p, **parts)
    return folder / "cell.npz"


def product(cell, p, xs, states, kept=None):
    """The product of the Jacobians at these states, of some paths or all; by complex steps."""
    result = np.eye(len(states[0]))
    for x, state in zip(xs, states, strict=False):
        paths = kept or [None]
        result = sum(equations.jacobian(cell, p, x, state, path) for path in paths) @ result
    return result


def log10_norm(matrix):
    return np.log10(np.linalg.norm(matrix, 2))


def run(cell, p, xs, state):
    states = [state]
    for x in xs:
        states.append(equations.advance(cell, p, x, states[-1]))
    return states


def along(function, p, name, direction):
    """The central difference of a function of parameters, for a change of one of them."""
    plus, minus = (function(p | {name: p[name] + sign * STEP * direction}) for sign in (1, -1))
    return (plus - minus) / (2 * STEP)


def check(found, function, p, seed=7):
    """Derivatives by every parameter, along a direction of each."""
    rng = np.random.default_rng(seed)
    for name in p:
        direction = rng.standard_normal(p[name].shape)
        expected = along(function, p, name, direction)
        assert (found[name] * direction).sum() == pytest.approx(expected, rel=1e-6, abs=CLOSE), name
        assert found[name].shape == p[name].shape


@pytest.mark.parametrize(
    ("cell", "cut"),
    [
        ("lstm", ()),
        ("rnn", ()),
        ("gru", ()),
        ("lstm", ("R_o", "carousel")),
        pytest.param("gru-reset-before", (), marks=pytest.mark.slow),
        pytest.param("lstm-peephole", (), marks=pytest.mark.slow),
    ],
)
def test_total_and_direct_are_those_of_the_equations(cell, cut, tmp_path):
    p, xs, state = drawn(cell)
    start = state if cell == "lstm" and not cut else 0 * state
    path = saved(tmp_path, p, start if start.any() else None)
    found = analyze(
        cell, checkpoint=path, inputs=xs[0], cut=cut, hidden=None, input_size=None, steps=None
    ).sensitivity
    kept = [path for path in gradscope.cells.find(cell).paths if path not in cut] if cut else None

    def total(p):
        return log10_norm(product(cell, p, xs[0], run(cell, p, xs[0], start), kept))

    states = run(cell, p, xs[0], start)
    check(found.total, total, p)
    check(found.direct, lambda p: log10_norm(product(cell, p, xs[0], states, kept)), p)
    for name, array in p.items():
        assert found.elasticity[name] == pytest.approx((array * found.total[name]).sum() * LN10)
    assert list(found.direct) == list(p)
    if start.any():  # the state that it begins with is a parameter too
        c0, h0 = np.split(start, 2)

        def by_state(parts):
            return log10_norm(product(cell, p, xs[0], run(cell, p, xs[0], np.concatenate([*parts.values()]))))

        check({"c0": found.total["c0"], "h0": found.total["h0"]}, by_state, {"c0": c0, "h0": h0})
    else:
        assert "h0" not in found.total
    assert found.error < 1e-12
    assert found.window is None


def test_of_a_batch_it_is_that_of_the_median_sequence(tmp_path):
    p, xs, _ = drawn("rnn", batch=3)
    path = saved(tmp_path, p)
    options = {"checkpoint": path, "hidden": None, "input_size": None, "steps": None}
    every = analyze("rnn", inputs=xs, **options)
    norms = [one.log10_singular_values[0] for one in every.full.spectra]
    assert every.sensitivity.sequence == norms.index(every.full.log10_norm.median)
    alone = analyze("rnn", inputs=xs[every.sensitivity.sequence], **options)
    np.testing.assert_allclose(every.sensitivity.total["R"], alone.sensitivity.total["R"], rtol=1e-9)


def test_of_a_shorter_sequence_and_of_one_read_backwards(tmp_path):
    """Padding changes nothing, and a backward layer is a forward one on the reversed sequence."""
    state = layouts.recurrent("rnn", D, N, dtype="float64", scale=1.5)
    back = {f"{name}_reverse": 1.1 * array for name, array in state.items()}
    path = layouts.saved(state | back, tmp_path / "m.safetensors")
    x = drawn("rnn")[1]
    both = gradscope.analyze(checkpoint=path, inputs=x, cell="rnn", lengths=[T - 2], sensitivity=True)
    assert both.sensitivity is None  # side by side, neither is the whole
    for layer, xs, end in zip(
        both.layers, (x[0, : T - 2], x[0, : T - 2][::-1]), ("_l0", "_l0_reverse"), strict=True
    ):
        p = layouts.equations_of("rnn", state | back, end)
        check(
            layer.sensitivity.total,
            lambda p, xs=xs: log10_norm(product("rnn", p, xs, run("rnn", p, xs, np.zeros(N)))),
            p,
        )


def test_a_linear_rnn_is_homogeneous():
    """<R, d log sigma_1 / dR> = T, and nothing else counts."""
    found = analyze("linear", steps=30, init="gaussian").sensitivity
    assert found.elasticity["R"] == pytest.approx(30, rel=1e-12)
    assert not found.total["W"].any()
    assert found.largest_adjoint == 0


def test_a_carousel_alone_answers_to_its_forget_bias(tmp_path):
    """d log prod f / d b_f of the unit that wins is the sum of 1 - f_t, and 0 of all others."""
    p, xs, _ = drawn("lstm")
    p |= {"R_f": np.zeros((N, N)), "b_o": np.full(N, -60.0)}  # h says nothing, so that the norm is c's alone
    found = analyze(
        "lstm", checkpoint=saved(tmp_path, p), inputs=xs, cut=["R_f", "R_i", "R_z", "R_o"],
        hidden=None, input_size=None, steps=None,
    ).sensitivity  # fmt: skip
    f = equations.sigmoid(xs[0] @ p["W_f"].T + p["b_f"])
    winner = np.argmax(f.prod(axis=0))
    expected = np.where(np.arange(N) == winner, (1 - f).sum(axis=0), 0.0) / LN10
    np.testing.assert_allclose(found.total["b_f"], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("together", [2, N])
def test_values_that_coincide_are_differentiated_together(together, tmp_path):
    """Of R = .9 Q + .5 the mean logarithm of the first k is T R^-T / k on their span, for normal R."""
    angle = 0.7
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    r = np.kron(np.eye(2), rotation) * np.repeat([0.9, 0.9 if together == N else 0.5], 2)
    p = {"W": np.ones((N, D)), "R": r, "b": np.ones(N)}
    analysis = analyze(
        "linear", checkpoint=saved(tmp_path, p), inputs="zeros", hidden=None, input_size=None, steps=9
    )
    found = analysis.sensitivity
    assert found.values == together
    span = np.diag(np.arange(N) < together).astype(float)
    expected = 9 * span @ np.linalg.inv(r).T @ span / together / LN10
    np.testing.assert_allclose(found.total["R"], expected, rtol=1e-9, atol=1e-12)
    assert any("coincide" in note for note in analysis.verdict.notes)


def test_chaos_is_said_and_windows_are_used(tmp_path):
    """Of windows: each begins at the state that it has, and all else answers."""
    n, steps = 24, 90
    rng = np.random.default_rng(3)
    p = {"W": np.zeros((n, 1)), "R": 3 * rng.standard_normal((n, n)) / np.sqrt(n), "b": np.zeros(n)}
    h0 = rng.standard_normal(n)
    np.savez(tmp_path / "c.npz", **p, h0=h0)
    analysis = gradscope.analyze(
        checkpoint=tmp_path / "c.npz", cell="rnn", inputs="zeros", steps=steps, sensitivity=True
    )
    found = analysis.sensitivity
    assert found.largest_adjoint > 1e3
    assert any("chaotically" in note for note in analysis.verdict.notes)
    xs, starts = np.zeros((steps, 1)), run("rnn", p, np.zeros((steps, 1)), h0)

    def windows(p):
        result, first = np.eye(n), [steps - k for k in range(found.window, steps, found.window)]
        for start, end in zip([0, *first[::-1]], [*first[::-1], steps], strict=True):
            states = run("rnn", p, xs[start:end], starts[start])
            result = product("rnn", p, xs[start:end], states) @ result
        return log10_norm(result)

    assert 1 <= found.window < steps
    expected = along(windows, p, "R", p["R"])
    assert (found.windowed["R"] * p["R"]).sum() == pytest.approx(expected, rel=1e-4)
    assert abs(found.elasticity["R"]) > 1e6  # the whole is another number
    told = analysis.to_dict()["sensitivity"]
    assert told["windowed"]["R"]["elasticity"] == pytest.approx(expected * LN10, rel=1e-4)
    assert told["total"]["R"]["elasticity"] == found.elasticity["R"]


# Of the second the trajectory answers chaotically: its windows have 5 of the 6 steps, and are 550 off.
@pytest.mark.parametrize(("scale", "size", "seed"), [(10.0, 3.0, 1), (30.0, 10.0, 0)])
def test_errors_cover_what_is_off_of_the_whole(scale, size, seed, tmp_path):
    rng = np.random.default_rng(seed)
    shapes = gradscope.cells.find("rnn").shapes(N, D).items()
    p = {key: scale * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes}
    x = size * rng.normal(size=(1, T, D))
    analysis = analyze(
        "rnn", checkpoint=saved(tmp_path, p), inputs=x, hidden=None, input_size=None, steps=None
    )
    found, told = analysis.sensitivity, analysis.to_dict()["sensitivity"]
    assert found.window == (5 if scale == 30 else None)
    for name, ours in found.elasticity.items():
        expected = elasticity(step_of("rnn"), p, x[0], np.zeros(N), name)
        error = told["total"][name]["elasticity_error"]
        assert abs(ours - expected) <= error < 1e-8, name
        assert found.error >= error


def test_a_column_keeps_the_digits_of_its_small_entries():
    """Where forward and backward vectors are nearly at right angles the gain hangs by them."""
    column = np.random.default_rng(0).standard_normal((9, 1)) * 10.0 ** np.arange(-40.0, 5, 5)[:, None]
    with precise("float64"):
        made, _ = log_norm_adjoint._orthonormal(column, 0.0)
    np.testing.assert_allclose(np.asarray(made), column / np.linalg.norm(column), rtol=1e-14)


def test_what_is_lost_in_rounding_is_not_told():
    """Runs that differ by more than the number itself leave nothing of it, nor of its gate."""
    one = Derivative(
        {"b_f": np.ones(2), "R_f": np.ones((2, 2))}, {}, None, {}, 2.0, None, np.zeros(3), np.ones(3), None
    )
    one = replace(one, direct=one.total, parameters=one.total)
    other = replace(one, total=one.total | {"b_f": np.array([3.0, -2.0])})
    found = concluded(one, [other], 1e-16)
    assert np.isnan(found.total["b_f"]).all()
    assert np.isnan(found.to_dict()["gates"]["f"]["elasticity"])
    assert found.elasticity["R_f"] == pytest.approx(4 * LN10)
    assert "that by b_f" in found.unmeasured
    assert found.error > 1


@pytest.mark.parametrize("kind", ["rnn", pytest.param("lstm", marks=pytest.mark.slow)])
def test_of_a_stack_it_is_that_of_all_layers(kind, tmp_path):
    steps = 3
    state = layouts.recurrent(kind, D, N, layers=2, scale=1.7, dtype="float64")
    x = drawn(kind)[1][0, :steps]
    analysis = gradscope.analyze(
        checkpoint=layouts.saved(state, tmp_path / "m.safetensors"),
        inputs=x,
        cell="rnn" if kind == "rnn" else None,
        sensitivity=True,
    )
    p = {
        f"layer{k}.{name}": array
        for k in range(2)
        for name, array in layouts.equations_of(kind, state, f"_l{k}").items()
    }

    def norm(p):
        weights = [{name[7:]: a for name, a in p.items() if name.startswith(f"layer{k}.")} for k in range(2)]

        def last(start):
            states = np.split(start, 2)
            for below in x:
                for k in range(2):
                    states[k] = equations.advance(kind, weights[k], below, states[k])
                    below = states[k][-N:]
            return np.concatenate(states)

        start = np.zeros(2 * N * (2 if kind == "lstm" else 1))
        return log10_norm(np.stack([last(one).imag / equations.H for one in equations.nudged(start)], axis=1))

    check(analysis.sensitivity.total, norm, p)
    assert analysis.layers[1].sensitivity.total.keys() == layouts.equations_of(kind, state, "_l1").keys()
    jsonschema.validate(analysis.to_dict(), schema())


def own_cell():
    """h_t = tanh(a (R h_(t-1)) + x_t), without names."""

    def step(p, x, h):
        return jnp.tanh(p["a"] * (p["R"] @ h) + x[0])

    return gradscope.Cell("own", lambda n, d: {"R": (n, n), "a": (n,)}, step)


def test_of_a_cell_of_the_users_own():
    rng = np.random.default_rng(4)
    p, x = {"R": rng.standard_normal((N, N)), "a": rng.standard_normal(N)}, rng.standard_normal((T, 1))
    cell = replace(own_cell(), initialize=lambda *_: p)
    found = analyze(cell, inputs=x, input_size=None, steps=None).sensitivity

    def norm(p):
        h, chain = np.zeros(N), np.eye(N)
        for (now,) in x:
            h = np.tanh(p["a"] * (p["R"] @ h) + now)
            chain = np.diag((1 - h**2) * p["a"]) @ p["R"] @ chain
        return log10_norm(chain)

    check(found.total, norm, p)


@pytest.mark.parametrize("every", [False, True])
def test_of_a_loss(every, tmp_path):
    """log10 |dL/ds_0|, by complex steps from the initial state."""
    p, xs, state = drawn("lstm")
    seeds = np.random.default_rng(5).standard_normal((T, N))
    if not every:
        seeds[:-1] = 0
    found = analyze(
        "lstm", checkpoint=saved(tmp_path, p, state), inputs=xs, adjoint=seeds if every else seeds[-1],
        hidden=None, input_size=None, steps=None,
    ).sensitivity.loss  # fmt: skip

    def norm(p):
        net = equations.Unrolled("lstm", p, xs[0], state, N)
        return np.log10(np.linalg.norm(np.tensordot(net.by_state(0), seeds, 2)))

    check(found.total, norm, p)


def test_a_gain_of_zero_has_none():
    analysis = gradscope.analyze(cell="rnn", hidden=2, input_size=1, steps=3, gain=0.0, sensitivity=True)
    assert analysis.sensitivity is None
    assert "No sensitivity: the gain is 0, whose logarithm has no derivative." in analysis.verdict.notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"view": "cell"}, "leave --view 'cell' out"),
        ({"scale": {"R_f": 0.5}}, "leave --scale out"),
        ({"only": "gain"}, "leave --only gain out"),
        ({"top": 1}, "ask for --top 2 at least"),
    ],
)
def test_what_has_no_derivative_is_refused(options, said):
    with pytest.raises(InputError) as error:
        analyze("lstm", **options)
    assert said in error.value.in_shell


def test_command_line(run, tmp_path):
    options = ["--cell", "linear", "--hidden", N, "--input-size", D, "--steps", 30, "--sensitivity"]
    code, out, _ = run("analyze", *options, "--init", "gaussian", "--json")
    told = json.loads(out)
    jsonschema.validate(told, schema())
    assert code == 0
    assert told["sensitivity"]["total"]["R"]["elasticity"] == pytest.approx(30)
    assert told["sensitivity"]["largest_adjoint"] == 0
    code, out, _ = run("analyze", *options, "--init", "gaussian")
    assert "Sensitivity: how log10 gain changes with" in out
