"""Cells against the equations of their papers and closed forms, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from oracles import equations
from oracles.driving import (
    Arrays,
    D,
    N,
    T,
    close,
    compiled,
    jacobians,
    parameters,
    path_jacobians,
    product,
    run,
    sequence,
    start,
)
from oracles.few import few

from gradscope.cells import CELLS, find
from gradscope.errors import InputError

EVERY = [*CELLS, *equations.ACTIVATED]
LSTMS = [name for name in EVERY if name.startswith("lstm")]
# The path by which a unit reads its own state.
OWN = dict.fromkeys(LSTMS, "carousel") | {name: "carry" for name in EVERY if name.startswith("gru")}


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def sigmoid(a: np.ndarray | float) -> Any:
    return 1 / (1 + np.exp(-a))


# The table of cells


def test_table_and_oracle_name_the_same_cells() -> None:
    assert set(EVERY) == equations.CELLS.keys()


@pytest.mark.parametrize("name", EVERY)
def test_cell_loads_under_its_name_with_the_parameters_of_its_equations(name: str) -> None:
    cell = find(name)
    assert cell.name == name
    shapes = cell.parameters(N, D)
    assert shapes.keys() == equations.keys(name)
    assert all(shape == {"W": (N, D), "R": (N, N)}.get(key[0], (N,)) for key, shape in shapes.items())


@pytest.mark.parametrize("name", EVERY)
def test_paths_are_the_recurrent_matrices_the_own_state_and_the_peepholes(name: str) -> None:
    cell = find(name)
    own = {OWN[name]} if name in OWN else set()
    back = {key for key in cell.parameters(N, D) if key[0] == "R" or key in ("p_i", "p_f")}
    assert set(cell.paths) == own | back
    assert cell.components == (("c", "h") if name in LSTMS else ("h",))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("lstm-tanh-sigmoid-tanh", "lstm"),
        ("lstm-relu-sigmoid-relu", "lstm-relu"),
        ("lstm-tanh-hard_sigmoid=1/5,.5", "lstm-tanh-hard_sigmoid=0.2"),
        ("gru-reset-before-tanh-hard_sigmoid=0.16666666666666666", "gru-reset-before-tanh-hard_sigmoid=1/6"),
        ("rnn-linear", "linear"),
        ("rnn-elu=1", "rnn-elu"),
        ("lstm-1997-elu=1e-05", "lstm-1997-elu=1e-05"),
    ],
)
def test_a_cell_of_given_activations_has_one_name(given: str, name: str) -> None:
    assert find(given) is find(name)
    assert find(name).name == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lstm-rellu", "unknown cell 'lstm-rellu': did you mean lstm-relu"),
        ("lstm-tanh-hard_sigmoid", "hard_sigmoid=1/5 is .* of Keras 2 .* hard_sigmoid=1/6 .* of Keras 3"),
        ("rnn-leaky_relu", "lacks a parameter: its slope below 0"),
        ("gru-relu-relu-relu", "cell gru has 2 activations, not 3"),
        ("rnn-elu=1,2", "has 2 parameters, expected 1"),
        ("rnn-elu=1e999", "not a finite number"),
        ("rnn-elu=1/0", "not a finite number"),
        ("rnn-elu=" + "9" * 10_000, "unknown cell"),
    ],
)
def test_activations_that_there_are_not(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        find(name)


def test_unknown_cell_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown cell 'lstm-peepholes': did you mean lstm-peephole"):
        find("lstm-peepholes")


def test_unknown_cell_without_a_near_name_lists_all() -> None:
    with pytest.raises(InputError, match=r"choose one of linear, rnn, .*package\.module:factory"):
        find("transformer")


def test_cell_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_cells.py").write_text(
        "import gradscope.cells.rnn\nmine = gradscope.cells.rnn.elman\nnumber = lambda: 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find("my_cells:mine").paths == ("R",)
    with pytest.raises(InputError, match=r"returned int, expected gradscope\.Cell"):
        find("my_cells:number")
    with pytest.raises(InputError, match="AttributeError"):
        find("my_cells:missing")
    with pytest.raises(InputError, match="ModuleNotFoundError"):
        find("no_such_module:cell")


# Against the equations of the papers, in NumPy


@pytest.mark.parametrize("name", EVERY)
def test_forward_pass_follows_the_equations(name: str) -> None:
    cell, xs = find(name), sequence()
    p, state = parameters(cell), start(cell)
    for x, ours in zip(xs, run(name, p, xs, state)[1:], strict=True):
        state = equations.advance(name, p, x, state)
        close(ours, state)


@pytest.mark.parametrize("name", few(CELLS, "rnn", "lstm-peephole", "lstm-niaf", "gru"))
def test_jacobian_over_the_whole_state(name: str) -> None:
    cell = find(name)
    p, x, state = parameters(cell), sequence()[0], start(cell)
    close(compiled(name)[1](p, x, state), equations.jacobian(name, p, x, state))


@pytest.mark.parametrize("name", EVERY)
def test_every_path_is_the_jacobian_with_the_other_paths_cut(name: str) -> None:
    cell = find(name)
    p, x, state = parameters(cell), sequence()[0], start(cell)
    ours = path_jacobians(cell, p, x, state)
    for path in cell.paths:
        theirs = equations.jacobian(name, p, x, state, path)
        assert np.abs(theirs).max() > 1e-3  # or the comparison would be of nothing
        close(ours[path], theirs)
    close(sum(ours.values()), compiled(name)[1](p, x, state))


@pytest.mark.parametrize("name", EVERY)
def test_chain_is_that_of_the_equations(name: str) -> None:
    """States, and the Jacobian of the last state with respect to the first, over all steps in one go."""
    cell, xs = find(name), sequence()
    p, state = parameters(cell), start(cell)
    expected, chain = equations.trajectory_jacobian(name, p, xs, state)
    states = run(name, p, xs, state)
    close(states[1:], expected)
    ours = product(jacobians(name, p, xs, states))
    np.testing.assert_allclose(ours, chain, rtol=0, atol=1e-12 * np.abs(chain).max())


@pytest.mark.parametrize("name", [name for name in CELLS if equations.CELLS[name][1]])
def test_gates_are_those_of_the_equations(name: str) -> None:
    cell = find(name)
    assert cell.gates is not None
    p, x, state = parameters(cell), sequence()[0], start(cell)
    new = equations.advance(name, p, x, state)
    gates = cell.gates(p, x, state)
    h = state[-N:]
    assert set(gates) == set(equations.CELLS[name][1]) - {"z" if name in LSTMS else "h"}
    for gate, values in gates.items():
        seen = new[:N] if gate == "o" else state[:N]
        peep = p.get(f"p_{gate}", 0.0) * seen if name in LSTMS else 0.0
        close(values, sigmoid(p[f"W_{gate}"] @ x + p[f"R_{gate}"] @ h + p[f"b_{gate}"] + peep))


def test_relu_has_no_slope_at_zero() -> None:
    p = {"W": np.zeros((N, D)), "R": np.eye(N), "b": np.zeros(N)}
    x, state = np.zeros(D), np.array([0.0, -1.0, 1.0, 0.0, 2.0])
    close(compiled("rnn-relu")[1](p, x, state), equations.jacobian("rnn-relu", p, x, state))
    close(compiled("rnn-relu")[1](p, x, state), np.diag([0.0, 0.0, 1.0, 0.0, 1.0]))


# Closed forms


def test_determinant_of_a_tanh_chain() -> None:
    """Sum of log sigma_i = sum over t and j of ln(1 - h^2) + T ln|det R|."""
    p, xs = parameters(find("rnn")), sequence()
    states = run("rnn", p, xs, start(find("rnn")))
    sigma = np.linalg.svd(product(jacobians("rnn", p, xs[:3], states)), compute_uv=False)
    expected = np.log1p(-(states[1:4] ** 2)).sum() + 3 * np.log(abs(np.linalg.det(p["R"])))
    np.testing.assert_allclose(np.log(sigma).sum(), expected, rtol=1e-8)


def lstm_values(p: Arrays, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, ...]:
    """z, i, f, o, c_(t-1) and c_t of an LSTM with all peepholes or none, in NumPy."""
    c, y = state[:N], state[N:]
    bar = {g: p[f"W_{g}"] @ x + p[f"R_{g}"] @ y + p[f"b_{g}"] for g in "zifo"}
    peep = {g: p.get(f"p_{g}", np.zeros(N)) for g in "ifo"}
    z, i, f = np.tanh(bar["z"]), sigmoid(bar["i"] + peep["i"] * c), sigmoid(bar["f"] + peep["f"] * c)
    new = f * c + i * z
    return z, i, f, sigmoid(bar["o"] + peep["o"] * new), c, new


@pytest.mark.parametrize("name", ["lstm", "lstm-peephole"])
def test_determinant_of_an_lstm_step(name: str) -> None:
    p, xs = parameters(find(name)), sequence()
    states = run(name, p, xs, start(find(name)))
    for x, state, jacobian in zip(xs, states, jacobians(name, p, xs, states), strict=False):
        z, i, f, o, c, new = lstm_values(p, x, state)
        own = f + p.get("p_f", 0.0) * c * f * (1 - f) + p.get("p_i", 0.0) * z * i * (1 - i)
        units = np.log(np.abs(np.tanh(new))) + np.log(o * (1 - o)) + np.log(np.abs(own))
        expected = np.log(abs(np.linalg.det(p["R_o"]))) + units.sum()
        np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["lstm", "lstm-peephole"])
def test_recurrent_paths_of_an_lstm(name: str) -> None:
    """dh_t/dh_(t-1) through each gate alone, Greff et al., appendix A.2."""
    cell = find(name)
    p, x, state = parameters(cell), sequence()[0], start(cell)
    z, i, f, o, c, new = lstm_values(p, x, state)
    u = o * (1 - np.tanh(new) ** 2) + p.get("p_o", 0.0) * np.tanh(new) * o * (1 - o)
    slopes = {
        "R_o": np.tanh(new) * o * (1 - o),
        "R_i": u * z * i * (1 - i),
        "R_f": u * c * f * (1 - f),
        "R_z": u * i * (1 - z**2),
    }
    paths = path_jacobians(cell, p, x, state)
    for key, slope in slopes.items():
        close(paths[key][N:, N:], slope[:, None] * p[key])


def test_bounds_of_the_recurrent_paths_without_peepholes() -> None:
    """At most 1/4 |R_o|, 1/4 |R_i|, |R_z|; the forget path's c makes it larger than its matrix.

    With R = I and h = 0 a path is the diagonal of its slopes. The largest slope of the forget path,
    sech(a - 1)^2 a over a = f c, is where 2 a tanh(a - 1) = 1: a = 1.37966, slope 1.19845.
    """
    n = 200
    rng = np.random.default_rng(0)
    p = {key: np.zeros(shape) for key, shape in find("lstm").parameters(n, D).items()}
    p |= {f"R_{g}": np.eye(n) for g in "zifo"} | {f"b_{g}": rng.uniform(-8, 8, n) for g in "zifo"}
    c = rng.normal(size=n) * np.exp(rng.uniform(-5, 5, n))
    p["b_z"][0], p["b_i"][0], p["b_f"][0], p["b_o"][0], c[0] = -40, 40, -40, 40, 1.37966 * np.exp(40)
    paths = path_jacobians(find("lstm"), p, np.zeros(D), np.concatenate([c, np.zeros(n)]))
    norm = {key: np.abs(paths[key][n:, n:]).max() for key in ("R_o", "R_i", "R_z", "R_f")}
    assert 0.2 < norm["R_o"] <= 0.25
    assert 0.1 < norm["R_i"] <= 0.25
    assert 0.5 < norm["R_z"] <= 1.0
    np.testing.assert_allclose(norm["R_f"], 1.19845, rtol=1e-5)


@pytest.mark.parametrize("name", ["gru", "gru-reset-before"])
def test_gru_at_rest(name: str) -> None:
    """J = z I + (1 - z) r R_h at h = 0 without input, for either place of the reset gate."""
    p = parameters(find(name))
    p["b_h"] *= 0
    p |= {"c_h": np.zeros(N)} if name == "gru" else {}
    rest = np.zeros(N)
    z, r = sigmoid(p["b_z"]), sigmoid(p["b_r"])
    close(compiled(name)[0](p, np.zeros(D), rest), rest)
    expected = np.diag(z) + ((1 - z) * r)[:, None] * p["R_h"]
    if name == "gru-reset-before":  # there the gate scales the columns
        expected = np.diag(z) + (1 - z)[:, None] * p["R_h"] * r
    close(compiled(name)[1](p, np.zeros(D), rest), expected)


@pytest.mark.parametrize("name", ["gru", "gru-reset-before"])
def test_gru_chain_of_a_normal_matrix(name: str) -> None:
    """Singular values |z + (1 - z) r lambda|^T; a rotation times 1 + exp(-b_r) is critical at 1."""
    b_z, b_r = 0.7, -0.4
    p = {key: np.zeros(shape) for key, shape in find(name).parameters(N, D).items()}
    p["b_z"] += b_z
    p["b_r"] += b_r
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(N, N)))[0]
    p["R_h"] = (1 + np.exp(-b_r)) * rotation  # normal: its eigenvalues are off the real axis
    states = run(name, p, np.zeros((T, D)), np.zeros(N))
    chain = product(jacobians(name, p, np.zeros((T, D)), states))
    z, r = sigmoid(b_z), sigmoid(b_r)
    gains = np.abs(z + (1 - z) * r * np.linalg.eigvals(p["R_h"])) ** T
    close(np.linalg.svd(chain, compute_uv=False), np.sort(gains)[::-1])
    p["R_h"] = (1 + np.exp(-b_r)) * np.eye(N)
    close(compiled(name)[1](p, np.zeros(D), np.zeros(N)), np.eye(N))


@pytest.mark.parametrize(("bias", "steps"), [(0, 1.443), (1, 3.192), (2, 7.879), (3, 20.58), (5, 148.9)])
def test_carousel_forgets_by_a_factor_e_in_the_known_number_of_steps(bias: float, steps: float) -> None:
    f = carousel(bias)
    np.testing.assert_allclose(-1 / np.log(f), steps, rtol=4e-4)


def test_carousel_with_chrono_bias_keeps_one_part_in_e() -> None:
    np.testing.assert_allclose(carousel(np.log(200 - 1.0)) ** 200, (1 - 1 / 200) ** 200, rtol=1e-12)
    np.testing.assert_allclose(carousel(np.log(1e6 - 1)) ** 1e6, np.exp(-1), rtol=1e-6)


def carousel(bias: float) -> float:
    """The one gain of the carousel of an LSTM that has nothing but a forget bias."""
    cell = find("lstm")
    p = {key: np.zeros(shape) for key, shape in cell.parameters(N, D).items()}
    p["b_f"] += bias
    jacobian = np.asarray(path_jacobians(cell, p, np.zeros(D), start(cell))["carousel"])
    close(jacobian[:N, :N], jacobian[0, 0] * np.eye(N))
    close(jacobian[:, N:], 0.0)
    return float(jacobian[0, 0])


def test_without_a_forget_gate_the_carousel_is_the_identity() -> None:
    for name in ("lstm-1997", "lstm-nfg"):
        cell = find(name)
        jacobian = path_jacobians(cell, parameters(cell), sequence()[0], start(cell))["carousel"]
        close(jacobian[:N, :N], np.eye(N))
