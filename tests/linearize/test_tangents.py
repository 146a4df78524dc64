"""Top values, lags and shares without Jacobians, against products of the equations' Jacobians."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import equations
from oracles.few import few

from gradscope.cells import find
from gradscope.linearize import tangent_chain
from gradscope.linearize.system import System, precise
from gradscope.linearize.tangent_chain import TangentChain
from gradscope.linearize.tangents import every_step, tangents
from gradscope.linearize.trajectory import Segments, Spread, Trajectory
from gradscope.measure.shares import error_of_shares
from gradscope.product_svd.spectrum import Spectrum, spectrum, top_spectra

N, D, T, B = 5, 3, 13, 2
COUNT = 3
# With and without units, peepholes, own paths, an output gate.
SOME = ["lstm-peephole", "lstm-nog", "gru", "gru-reset-before"]


@cache
def problem(name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Large random weights, inputs (B, T, D), and initial states away from zero."""
    cell, rng = find(name), np.random.default_rng(1)
    parameters = {k: rng.normal(size=s) for k, s in cell.parameters(N, D).items()}
    return parameters, rng.normal(size=(B, T, D)), rng.normal(size=(B, N * len(cell.components)))


def sweeps(name: str, path: str | None = None, length: int = 4, dtype: str = "float64") -> TangentChain:
    parameters, inputs, state = problem(name)
    cell = find(name)
    segments = Segments(T, length, -(-T // length))
    system = System(cell, N, parameters, inputs, state, dtype=dtype)
    with precise(dtype):
        trajectory = Trajectory(system, segments, Spread((jax.devices("cpu")[0],)))
    if path is None:
        return TangentChain(trajectory, tangents(cell, cell.paths), B, dtype)
    return TangentChain(trajectory, tangents(cell, (path,), cell.source(path)), B, dtype)


@cache
def jacobians(name: str, path: str | None = None) -> np.ndarray:
    """Of the equations, (B, T, m, m)."""
    parameters, inputs, states = problem(name)
    found = []
    for sequence, state in zip(inputs, states, strict=True):
        for x in sequence:
            found.append(equations.jacobian(name, parameters, x, state, path))
            state = equations.advance(name, parameters, x, state)
    return np.array(found).reshape(B, T, *found[0].shape)


def own(name: str, path: str) -> np.ndarray:
    """The path's chain in the component it reads."""
    source = find(name).source(path)
    part = slice(None) if source is None else slice(source * N, (source + 1) * N)
    return jacobians(name, path)[:, :, part, part]


def check(found: list[Spectrum], chains: np.ndarray, count: int) -> None:
    for one, chain in zip(found, chains, strict=True):
        true = spectrum(chain, by_lag=True)
        np.testing.assert_allclose(
            one.log10_singular_values, true.log10_singular_values[:count], rtol=1e-13, atol=1e-11
        )
        assert one.log10_error < 1e-9
        assert one.lags is not None
        assert true.log10_norm_by_lag is not None
        np.testing.assert_allclose(
            one.log10_norm_by_lag, true.log10_norm_by_lag[one.lags - 1], rtol=1e-13, atol=1e-10
        )


@pytest.mark.parametrize("name", few(["rnn", *SOME], "rnn", "lstm-peephole"))
def test_top_values(name: str) -> None:
    check(top_spectra(sweeps(name), COUNT, by_lag=True), jacobians(name), COUNT)


@pytest.mark.parametrize("name", few(["lstm-peephole", "gru", "gru-reset-before"], "gru"))
def test_top_values_of_every_path(name: str) -> None:
    for path in find(name).paths:
        check(top_spectra(sweeps(name, path), COUNT, by_lag=True), own(name, path), COUNT)


@pytest.mark.parametrize("name", few(SOME, "lstm-peephole", "gru-reset-before"))
def test_columns_go_through_as_many_of_the_last_steps_as_each_asks_for(name: str) -> None:
    """Over more than one segment, in both directions, in any order, and few of them the longest way."""
    rng, few_lags = np.random.default_rng(0), np.array([1, 7, T])
    steps, operator, lags = jacobians(name), sweeps(name), rng.permutation([T, 7, *[2] * 9, *[1] * 7])
    block = rng.normal(size=(len(steps), operator.size, len(lags)))
    exact = [
        np.stack([np.linalg.multi_dot([*one[: -k - 1 : -1], np.eye(operator.size)]) for one in steps])
        for k in (*lags, *few_lags)
    ]
    for back in (False, True):
        found, exponents = operator.tails(block, lags, back)
        for j, product in enumerate(exact[: len(lags)]):
            expected = (product.swapaxes(1, 2) if back else product) @ block[:, :, j, None]
            np.testing.assert_allclose(
                np.ldexp(found[:, :, j], exponents[:, None, j]), expected[..., 0], atol=1e-12
            )
    found, exponents = operator.images(block, few_lags)
    for k, product in enumerate(exact[len(lags) :]):
        np.testing.assert_allclose(
            np.ldexp(found[:, k], exponents[:, k, None]), product.swapaxes(1, 2) @ block, atol=1e-12
        )


@pytest.mark.parametrize("name", ["lstm", "gru-reset-before"])
def test_no_jacobian_of_many_units_is_formed(name: str) -> None:
    """Nor anything as large, by any operation that blocks go through: it would have half a gigabyte."""
    cell, hidden, columns = find(name), 4096, tangent_chain.WIDTHS[-1]
    size, chain = hidden * len(cell.components), tangents(cell, cell.paths)

    def of(*sizes: int, dtype: str = "float64") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def programs(parameters: Any, inputs: Any, start: Any, block: Any, span: Any, back: Any) -> Any:
        every = jax.vmap(lambda x, s: every_step(cell, parameters, x, s))(inputs, start)
        steps = jax.tree.map(lambda leaf: leaf[0], chain.chosen(every))
        common = [chain.shared(parameters, way) for way in (False, True)]
        whole = tangent_chain._sweep(chain.maps, 2, (common, span, back), steps, block)
        shared, exponents = (common, span[:2], back, span[0] + jnp.arange(columns)), jnp.zeros(columns, int)
        widths = tangent_chain.WIDTHS
        return whole, tangent_chain._columns(chain.maps, widths, shared, steps, block, exponents)

    with precise("float64"):
        traced = jax.make_jaxpr(programs)(
            {key: of(*shape) for key, shape in cell.parameters(hidden, D).items()},
            *(of(1, 16, D), of(1, size), of(size, columns), of(3, dtype="int32"), of(dtype="bool")),
        )
    made = {
        equation.primitive.name: variable.aval.size
        for equation in _equations(traced.jaxpr)
        for variable in equation.outvars
        if variable.aval.size >= size * hidden / 8
    }
    # Weights are put together, and turned round, as they are.
    assert set(made) <= {"stack", "concatenate", "reshape", "transpose", "broadcast_in_dim"}, made


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Of a program, and of those within it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                yield from _equations(inner) if hasattr(inner, "eqns") else ()


def back(
    told: list[tuple[int, np.ndarray, np.ndarray]], left: np.ndarray, steps: np.ndarray, log10_norm: float
) -> None:
    """The gradient that survives best, of the first sequence, is that of plain products."""
    for first, vectors, carried in told:
        for t, row in enumerate(vectors, first + 1):
            expected = left @ np.linalg.multi_dot(
                [np.eye(len(left)), np.eye(len(left)), *steps[: t - 1 : -1]]
            )
            np.testing.assert_allclose(10**row, np.abs(expected), rtol=1e-9)
        np.testing.assert_allclose(carried, log10_norm, atol=1e-9)
    assert sum(len(carried) for _, _, carried in told) == len(steps)


@pytest.mark.parametrize("name", ["lstm-peephole", "gru-reset-before"])
def test_shares_are_the_derivatives_of_the_norm(name: str) -> None:
    chain = sweeps(name)
    found = top_spectra(chain, 1)
    told: list[tuple[int, np.ndarray, np.ndarray]] = []
    left, right = (np.array([getattr(s, side) for s in found]) for side in ("left", "right"))
    shares = chain.shares(left, right, lambda *one: told.append(one))[0]
    back(told, left[0], jacobians(name)[0], float(found[0].log10_singular_values[0]))
    paths = find(name).paths
    assert shares.shape == (B, T, len(paths))
    steps = jacobians(name)
    for number, path in enumerate(paths):
        for t in (0, 5, T - 1):  # d log sigma_1 / d log alpha, for J_t with alpha times the path
            logs = []
            for alpha in (1 + 1e-5, 1 - 1e-5):
                changed = steps.copy()
                changed[:, t] += (alpha - 1) * jacobians(name, path)[:, t]
                products = [np.linalg.multi_dot(one[::-1]) for one in changed]
                logs.append(np.log(np.linalg.norm(products, 2, axis=(1, 2))))
            np.testing.assert_allclose(shares[:, t, number], (logs[0] - logs[1]) / 2e-5, atol=1e-8)


def test_the_error_of_shares_is_that_of_vectors_that_are_not_there_yet() -> None:
    """Vectors that are off by this much are found out by a pass, and how far the shares are off with them."""
    chain, paths = sweeps("lstm-peephole"), find("lstm-peephole").paths
    found = top_spectra(chain, 2)
    left, right = (np.array([getattr(s, side) for s in found]) for side in ("left", "right"))
    exact = chain.shares(left, right)[0]
    for off in (1e-7, 1e-3):
        moved = right + off * np.roll(right, 1, axis=1)
        rough, *ends = chain.shares(left, moved / np.linalg.norm(moved, axis=1, keepdims=True))
        again = chain.shares(*ends)[0]
        for of in zip(found, rough, again, exact, strict=True):
            one, two, true = (dict(zip(paths, each.T, strict=True)) for each in of[1:])
            error = error_of_shares(of[0], one, two)
            assert max(abs((one[name] - true[name]).mean()) for name in paths) <= error < 1e3 * off
    assert np.isnan(error_of_shares(found[0].first(1), one, two))  # how far the second is, is not known


@pytest.mark.parametrize("length", few([1, 5, T, 32], 5))
def test_segments_do_not_matter(length: int) -> None:
    whole, cut = (top_spectra(sweeps("lstm", length=n), COUNT, by_lag=True) for n in (16, length))
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one.log10_singular_values, other.log10_singular_values, atol=1e-12)
        np.testing.assert_allclose(np.asarray(one.log10_norm_by_lag), other.log10_norm_by_lag, atol=1e-12)


@pytest.mark.parametrize("name", few(["lstm", "gru", "gru-reset-before"], "gru"))
def test_float32_knows_its_error(name: str) -> None:
    eps = 4 * float(np.finfo(np.float32).eps)
    rough = top_spectra(sweeps(name, dtype="float32"), COUNT, entry_error=eps)
    exact = top_spectra(sweeps(name), COUNT)
    for one, other in zip(rough, exact, strict=True):
        error = np.abs(one.log10_singular_values - other.log10_singular_values).max()
        assert error <= one.log10_error
        assert one.log10_error < 1e-4


def test_a_dead_chain_has_no_shares() -> None:
    chain = sweeps("rnn")
    zero = np.zeros((B, N))
    assert np.isnan(chain.shares(zero, zero)[0]).all()
