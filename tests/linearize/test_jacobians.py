"""The fast per-unit form against the definition, and the cell view against plain autodiff."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import equations
from oracles.few import few

from gradscope.cells import CELLS, find
from gradscope.linearize.cell_chain import CellChain, cell_view, split
from gradscope.linearize.jacobians import definition, linearize, link
from gradscope.product_svd.steps import multiplied

N, D, T = 5, 3, 9
PER_UNIT = [name for name in (*CELLS, *equations.ACTIVATED) if find(name).units is not None]
LSTMS = [name for name in CELLS if name.startswith("lstm")]


@pytest.fixture(autouse=True)
def _strict():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@cache
def problem(name, dtype="float64", seed=0):
    """A cell with large random weights, inputs, and an initial state away from zero."""
    cell, rng = find(name), np.random.default_rng(seed)
    parameters = {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in cell.parameters(N, D).items()}
    inputs = jnp.asarray(rng.normal(size=(T, D)), dtype)
    state = jnp.asarray(rng.normal(size=N * len(cell.components)), dtype)
    return cell, parameters, inputs, state


@cache
def linearized(name, dtype="float64"):
    """Arguments for split, once per cell."""
    cell, parameters, inputs, state = problem(name, dtype)
    return cell, jax.device_get(parameters), jax.device_get(linearize(cell, parameters, inputs, state))


def tolerance(dtype):
    """A few roundings of numbers of order 1."""
    return 40 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", few(PER_UNIT, "rnn", "lstm-peephole", "gru"))
def test_fast_form_is_the_definition(name, dtype):
    cell, parameters, inputs, _state = problem(name, dtype)
    found = linearized(name, dtype)[2]
    jacobians = split(cell, parameters, found)
    paths = jacobians.paths
    assert [p.name for p in paths] == list(cell.paths)
    reference = jax.device_get(
        jax.jit(definition, static_argnums=0)(cell, parameters, inputs, found["states"][:-1])
    )
    for path in paths:
        dense = of_path(jacobians, path)
        for t in range(T):
            assert np.abs(dense[t] - reference[path.name][t]).max() <= tolerance(dtype)


@pytest.mark.parametrize("name", few(CELLS, "rnn", "lstm-peephole", "lstm-nfg", "gru", "gru-reset-before"))
def test_paths_add_up_to_the_jacobian(name):
    cell, parameters, inputs, _ = problem(name)
    found = linearized(name)[2]
    jacobians = split(cell, parameters, found)
    before = found["states"][:-1]
    full = jax.vmap(lambda x, s: jax.jacrev(lambda s: cell.advance(parameters, x, s))(s))(inputs, before)
    full = np.asarray(full)
    assert len(jacobians) == T
    for t in range(T):
        assert np.abs(jacobians[t] - full[t]).max() <= tolerance("float64")


@pytest.mark.parametrize("name", few(CELLS, "rnn-relu", "lstm-cifg", "gru-reset-before"))
def test_chain_of_jacobians_is_the_derivative_of_the_whole_pass(name):
    cell, parameters, inputs, state = problem(name)

    def last(state):
        return jax.lax.scan(lambda s, x: (cell.advance(parameters, x, s), None), state, inputs)[0]

    jacobians = split(*linearized(name))
    product = np.linalg.multi_dot([jacobians[t] for t in reversed(range(T))])
    whole = np.asarray(jax.jacfwd(last)(state))
    np.testing.assert_allclose(product, whole, rtol=1e-9, atol=1e-11 * np.abs(whole).max())


@pytest.mark.parametrize("name", PER_UNIT)
def test_blocks_are_the_part_of_the_path_that_stays_in_its_component(name):
    jacobians = split(*linearized(name))
    for path in jacobians.paths:
        part = slice(path.source * N, (path.source + 1) * N)
        chain, dense = jacobians.chains[path.name], of_path(jacobians, path)
        for t in range(T):
            np.testing.assert_array_equal(chain[t], dense[t][part, part])
        assert (chain.diagonal is None) == path.name.startswith("R")
        if chain.diagonal is not None:
            np.testing.assert_array_equal(np.diag(chain.diagonal[-1]), chain[T - 1])


def of_path(jacobians, path):
    """The (m, m) Jacobians of one path."""
    return CellChain((path,), jacobians.steps, jacobians.size)


@pytest.mark.parametrize("cut", [(), ("R_z",)])
@pytest.mark.parametrize("name", list(CELLS))
def test_products_with_parts_are_products_with_the_matrix(name, cut):
    jacobians = split(*linearized(name), tuple(set(cut) & set(find(name).paths)))
    y = np.random.default_rng(2).normal(size=(3, jacobians.size))
    for t in range(T):
        np.testing.assert_allclose(
            multiplied(y, jacobians.parts(t)), y @ jacobians[t], rtol=1e-13, atol=1e-14
        )


def nothing_is_zero(chain):
    """Whether no step has a row or a column of zeros."""
    steps = np.array([chain[t] for t in range(T)])
    return bool(steps.any(axis=1).all() and steps.any(axis=2).all())


@pytest.mark.parametrize("name", list(CELLS))
def test_survey_bounds_rows_and_never_overlooks_a_zero(name):
    cell, parameters, inputs, state = problem(name)
    # Nothing reads the first unit's output: its column is zero unless a path of its own leads on.
    unread = {k: v.at[:, 0].set(0.0) if k.startswith("R") else v for k, v in parameters.items()}
    for weights in (parameters, unread):
        found = jax.device_get(linearize(cell, weights, inputs, state))
        jacobians = split(cell, jax.device_get(weights), found)
        sizes, certain = jacobians.survey()
        if name not in PER_UNIT:  # of dense paths it claims nothing
            assert not certain
            assert not sizes.any()
            continue
        largest = np.array([np.abs(jacobians[t]).max(axis=1) for t in range(T)])
        assert np.all(sizes >= largest * (1 - 1e-12))
        assert certain == nothing_is_zero(jacobians)
        for path in jacobians.paths:
            chain = jacobians.chains[path.name]
            assert chain.survey()[1] == nothing_is_zero(chain), path.name
        assert weights is parameters or not all(c.survey()[1] for c in jacobians.chains.values())


def test_survey_is_certain_of_an_ordinary_lstm():
    assert split(*linearized("lstm")).survey()[1]


@pytest.mark.parametrize("name", list(CELLS))
def test_bilinear_form_of_a_path(name):
    jacobians = split(*linearized(name))
    left, right = np.random.default_rng(1).normal(size=(2, T, jacobians.size))
    carried = jacobians.carried(left, right)
    for path in jacobians.paths:
        dense = of_path(jacobians, path)
        for t, value in enumerate(carried[path.name]):
            assert value == pytest.approx(left[t] @ dense[t] @ right[t], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", few(LSTMS, "lstm", "lstm-peephole", "lstm-noaf"))
def test_cell_view_is_the_derivative_with_the_output_gate_held_fixed(name):
    cell, parameters, inputs, _ = problem(name)
    found = dict(linearized(name)[2])
    found["link"] = link(cell, found["states"], found["gates"])
    view = cell_view(cell, parameters, found)
    assert len(view) == T - 1
    assert view.size == N
    assert "R_o" not in [p.name for p in view.paths]
    states = np.asarray(found["states"])
    squash = (lambda c: c) if name == "lstm-noaf" else jnp.tanh
    for t in range(1, T):
        c, h = states[t, :N], states[t, N:]
        output = h / np.asarray(squash(c))  # the gate, from the state itself

        def new_cell(c, output=output, squash=squash, x=inputs[t]):
            return cell.advance(parameters, x, jnp.concatenate([c, output * squash(c)]))[:N]

        expected = jax.jacfwd(new_cell)(c)
        np.testing.assert_allclose(view[t - 1], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", list(CELLS))
def test_a_cut_path_is_missing_from_the_sum(name):
    cell, parameters, *_ = problem(name)
    found = linearized(name)[2]
    whole = split(cell, parameters, found)
    for cut in cell.paths:
        without = split(cell, parameters, found, (cut,))
        assert [p.name for p in without.paths] == [p for p in cell.paths if p != cut]
        removed = of_path(whole, next(p for p in whole.paths if p.name == cut))[2]
        np.testing.assert_allclose(without[2] + removed, whole[2], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in CELLS if equations.CELLS[name][1]])
def test_gates_lie_between_zero_and_one(name):
    parameters = problem(name)[1]
    gates = linearized(name)[2]["gates"]
    assert set(gates) == {k[2:] for k in parameters if k.startswith("R_")} - {"h"} - (
        {"z"} if "lstm" in name else set()
    )
    for gate in gates.values():
        assert gate.shape == (T, N)
        assert ((gate > 0) & (gate < 1)).all()


def test_no_step_beyond_the_end():
    jacobians = split(*linearized("rnn"))
    assert sum(1 for _ in jacobians) == T
    with pytest.raises(IndexError):
        jacobians[T]
