"""Connected layers as one cell: blocks against plain autodiff, the fast form against the definition."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.few import few
from oracles.reference import reference

import gradscope
from gradscope.cells import find
from gradscope.cells.cell import Cell, Member
from gradscope.cells.stack import stacked
from gradscope.errors import InputError
from gradscope.linearize.jacobians import definition, linearize
from gradscope.linearize.more_digits import Digits, Some
from gradscope.linearize.stack_chain import blocked
from gradscope.product_svd.operator import DenseOperator, Window
from gradscope.product_svd.spectrum import top_spectra
from gradscope.product_svd.steps import Steps, checked, multiplied, reachable

D, T = 3, 8


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def mine(name="mine"):
    """A cell without a per-unit form or named paths, the second half of whose state is its output."""

    def step(p, x, s):
        return jnp.concatenate([jnp.sin(p["W"] @ x + p["R"] @ s), jnp.tanh(s[:4] * s[4:])])

    return Cell(name, lambda n, d: {"W": (4, d), "R": (4, 8)}, step, components=("a", "b"))


MINE = mine()


def skipping(top):
    """Layer 4 reads the two below it and a column of the inputs; numbers are those of a larger file."""
    return (
        Member(find("lstm-peephole"), 4, D, 1, ((0, 3),)),
        Member(find("gru"), 5, 4, 2, (0,)),
        Member(top, 4, 4 + 5 + 1, 4, (1, 0, (2, 3))),
    )


STACKS = {
    "two": (Member(find("lstm"), 4, D, 0, ((0, D),)), Member(find("lstm"), 5, 4, 1, (0,))),
    "units": skipping(find("rnn")),
    "dense on top": skipping(find("gru-reset-before")),
    "dense below": (Member(MINE, 4, D, 0, ((0, D),)), Member(find("lstm-cifg"), 3, 4, 1, (0,))),
}


@cache
def problem(name):
    """A stack with large random weights, inputs, and a state away from zero."""
    with jax.enable_x64(True):
        cell, rng = stacked(STACKS[name]), np.random.default_rng(1)
        parameters = {key: rng.normal(size=shape) for key, shape in cell.shapes(0, 0).items()}
        inputs, state = rng.normal(size=(T, D)), rng.normal(size=cell.size(0))
        found = jax.device_get(linearize(cell, parameters, inputs, state))
        reference = definition(cell, parameters, inputs, found["states"][:-1])
        return cell, parameters, inputs, found, jax.device_get(reference)


def of_layer(named, number):
    prefix = f"layer{number}."
    return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}


@pytest.mark.slow
def test_blocks_are_derivatives_of_layer_after_layer():
    cell, parameters, inputs, found, blocks = problem("units")
    lstm, gru, rnn = (find(name) for name in ("lstm-peephole", "gru", "rnn"))

    def layers(s1, s2, s4, x):
        first = lstm.advance(of_layer(parameters, 1), x, s1)
        second = gru.advance(of_layer(parameters, 2), first[4:], s2)
        given = jnp.concatenate([second, first[4:], x[2:3]])
        return first, second, rnn.advance(of_layer(parameters, 4), given, s4)

    parts = {"layer1": slice(0, 8), "layer2": slice(8, 13), "layer4": slice(13, 17)}
    assert cell.extents(0) == parts
    assert cell.output(0) == slice(13, 17)
    assert cell.paths == ("layer1", "layer2", "layer4", "1->2", "1->4", "2->4")
    for t in range(T):
        states = [found["states"][t][part] for part in parts.values()]
        derivatives = jax.jacrev(layers, argnums=(0, 1, 2))(*states, inputs[t])
        after = np.concatenate(layers(*states, inputs[t]))
        np.testing.assert_allclose(after, found["states"][t + 1], atol=1e-14)
        for j, (to, rows) in enumerate(parts.items()):
            for i, (source, columns) in enumerate(parts.items()):
                name = to if i == j else f"{source[-1]}->{to[-1]}"
                if i > j:
                    assert name not in cell.paths
                    continue
                np.testing.assert_allclose(blocks[name][t][rows, columns], derivatives[j][i], atol=1e-13)
                outside = blocks[name][t].copy()
                outside[rows, columns] = 0
                assert not outside.any()


def test_output_of_a_stack_is_h_of_its_last_layer():
    assert stacked(STACKS["two"]).output(0) == slice(13, 18)


@pytest.mark.parametrize("name", few(STACKS, "two"))
def test_fast_form_is_the_definition(name):
    cell, parameters, _, found, reference = problem(name)
    chain = blocked(cell, parameters, found)
    assert chain.names == cell.paths
    full = sum(reference.values())
    left, right = np.random.default_rng(2).normal(size=(2, T, chain.size))
    carried = chain.carried(left, right)
    for t in range(T):
        np.testing.assert_allclose(chain[t], full[t], rtol=0, atol=1e-13)
        np.testing.assert_allclose(chain.wide(t).float64(), full[t], rtol=0, atol=1e-13)
        product = multiplied(left[:3], chain.parts(t), chain.layout)
        np.testing.assert_allclose(product, left[:3] @ full[t], rtol=0, atol=1e-12)
        for path in cell.paths:
            expected = left[t] @ reference[path][t] @ right[t]
            assert carried[path][t] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for number, member in enumerate(cell.members):
        own = list(cell.extents(0).values())[number]
        for t in range(T):
            np.testing.assert_allclose(chain.chains[member.name][t], full[t][own, own], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", list(STACKS))
def test_a_cut_block_is_missing_from_the_sum(name):
    cell, parameters, _, found, reference = problem(name)
    full = sum(reference.values())
    for cut in cell.paths:
        chain = blocked(cell, parameters, found, (cut,))
        assert set(chain.chains) == {"full", *cell.paths} - {cut}
        y = np.random.default_rng(3).normal(size=(2, chain.size))
        for t in range(T):
            np.testing.assert_allclose(chain[t], full[t] - reference[cut][t], rtol=0, atol=1e-13)
            product = multiplied(y, chain.parts(t), chain.layout)
            np.testing.assert_allclose(product, y @ chain[t], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(STACKS))
def test_steps_without_each_block_side_by_side(name):
    """Of products that are lower triangular in blocks, with rows of noise below; another block cut too."""
    cell, parameters, _, found, reference = problem(name)
    for cut in ((), (cell.paths[0],), (cell.paths[-1],)):
        chain = blocked(cell, parameters, found, cut)
        y = np.random.default_rng(4).normal(size=(len(chain.names), chain.size + 2, chain.size))
        for own in chain.extents:
            y[:, own, own.stop :] = 0.0
        for t, step in zip(reversed(range(T)), chain.beside(), strict=True):
            step.times(y, out := np.zeros_like(y))
            for number, gone in enumerate(chain.names):
                left = sum(reference[path][t] for path in cell.paths if path not in (gone, *cut))
                np.testing.assert_allclose(out[number], y[number] @ left, rtol=0, atol=1e-12)
                norms = np.linalg.norm(left, axis=0)
                np.testing.assert_allclose(step.columns[number], norms, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", list(STACKS))
def test_survey_bounds_rows_and_never_overlooks_a_zero(name):
    cell, parameters, _, found, reference = problem(name)
    full = sum(reference.values())
    sizes, certain = blocked(cell, parameters, found).survey()
    assert certain == ("dense" not in name)
    if certain:
        assert np.all(sizes >= np.abs(full).max(axis=2) * (1 - 1e-12))
    else:  # it claims nothing
        assert not sizes.any()
    dead = {key: value * (key != "layer1.R_o") for key, value in parameters.items()}
    if name == "two":  # then nothing reads h of the last layer
        dead |= {key: value * 0 for key, value in parameters.items() if key.startswith("layer1.R_")}
        found = jax.device_get(linearize(cell, dead, np.zeros((T, D)), found["states"][0]))
        assert not blocked(cell, dead, found).survey()[1]


def test_gates_are_those_of_the_layers():
    cell, parameters, inputs, found, _ = problem("units")
    states = found["states"]
    assert set(found["gates"]) == {"layer1.i", "layer1.f", "layer1.o", "layer2.r", "layer2.z"}
    h = states[1:, 4:8]  # of layer 1, what layer 2 reads
    for t in range(T):
        one = find("gru").gates(of_layer(parameters, 2), h[t], states[t, 8:13])
        np.testing.assert_allclose(found["gates"]["layer2.z"][t], one["z"], atol=1e-14)
        here = cell.gates(parameters, inputs[t], states[t])
        np.testing.assert_allclose(found["gates"]["layer2.z"][t], here["layer2.z"], atol=1e-14)


def triangular(sizes, steps, seed=0, coupling=1e-4):
    """Block lower triangular steps, the blocks off the diagonal much smaller."""
    rng = np.random.default_rng(seed)
    m = sum(sizes)
    steps = rng.normal(size=(steps, m, m)) / np.sqrt(m)
    steps[:, : sizes[0], sizes[0] :] = 0
    steps[:, sizes[0] :, : sizes[0]] *= coupling
    return steps


@pytest.mark.parametrize("sizes", [(4, 7), (7, 4), (5, 5)])
def test_a_window_against_exact_arithmetic(sizes):
    steps, first = triangular(sizes, 120), sizes[0]
    window = (slice(first, None), slice(first))
    found = gradscope.spectrum(steps, by_lag=True, window=window)
    assert len(found.left) == sizes[1]
    assert len(found.right) == first
    for lag in (1, 2, 37, 120):
        masked = steps[-lag:].copy()
        masked[0][:, first:] = 0
        masked[-1][:first] = 0
        exact = reference(masked, vectors=True)
        assert found.log10_norm_by_lag[lag - 1] == pytest.approx(float(exact.log10()[0]), abs=1e-11)
    assert found.exact_zeros == 0
    assert len(found.log10_singular_values) == min(sizes)
    errors = np.abs(exact.log10_errors(found.log10_singular_values))
    assert errors.max() <= min(found.log10_error, 1e-10)
    right = np.abs(exact.right[:first, 0].astype(float) @ found.right)
    left = np.abs(exact.left[first:, 0].astype(float) @ found.left)
    assert right == pytest.approx(1, abs=1e-10)
    assert left == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("sizes", [(9, 14), (14, 9)])
def test_a_window_of_an_operator_is_that_of_the_product(sizes):
    steps, first = triangular(sizes, 40, coupling=0.3), sizes[0]
    window = (slice(first, None), slice(first))
    whole = gradscope.spectrum(steps, by_lag=True, window=window)
    (top,) = top_spectra(Window(DenseOperator(checked(steps)[0], sum(sizes)), window), 3, by_lag=True)
    errors = np.abs(top.log10_singular_values - whole.log10_singular_values[:3])
    assert errors.max() <= top.log10_error + 1e-12
    assert top.log10_error < 1e-9
    assert (len(top.left), len(top.right)) == (sizes[1], first)
    of_lag = whole.log10_norm_by_lag[top.lags - 1]
    np.testing.assert_allclose(top.log10_norm_by_lag, of_lag, rtol=0, atol=1e-9)
    assert abs(top.right @ whole.right) == pytest.approx(1, abs=1e-8)


def test_of_a_window_whose_rows_are_not_zero_few_steps_are_looked_at(monkeypatch):
    """All states that are reached reach all: the answer is that of a look at every step."""
    steps, gaps = checked(triangular((4, 5), 20))
    window = (slice(4, None), slice(4))
    looked_at_all = reachable(steps, 9, *window, gaps=True)
    looked, nonzero = [], Steps.nonzero
    monkeypatch.setattr(Steps, "nonzero", lambda self, t: looked.append(t) or nonzero(self, t))
    for masks, same in zip(reachable(steps, 9, *window, gaps), looked_at_all, strict=True):
        np.testing.assert_array_equal(masks, same)
    assert not gaps
    assert len(looked) == 2


def test_a_window_counts_its_exact_zeros():
    steps = triangular((3, 4), 9)
    steps[:, 3:, 0] = steps[:, 1:, 0] = 0  # the first state reaches nothing but itself
    found = gradscope.spectrum(steps, by_lag=True, window=(slice(3, None), slice(3)))
    product = np.linalg.multi_dot(steps[::-1])[3:, :3]
    values = np.log10(np.linalg.svd(product, compute_uv=False)[:2])
    assert found.exact_zeros == 1
    np.testing.assert_allclose(found.log10_singular_values[:2], values, atol=1e-9)
    assert found.log10_singular_values[2] == -np.inf
    with pytest.raises(InputError, match="expected at least one row and column of the 7 states"):
        gradscope.spectrum(steps, window=(slice(3, 3), slice(3)))
    with pytest.raises(InputError, match="top is 4, expected 1 to 3"):
        gradscope.spectrum(steps, 4, window=(slice(3, None), slice(3)))


def analysis(name, **options):
    _, parameters, inputs, *_ = problem(name)
    cell = stacked(STACKS[name])
    gentle = {key: value / 2 for key, value in parameters.items()}
    brought = Cell(
        **{field: getattr(cell, field) for field in cell.__dataclass_fields__ if field != "initialize"},
        initialize=lambda *_: gentle,
    )
    return gentle, gradscope.analyze(cell=brought, hidden=1, inputs=inputs, **options)


@pytest.mark.parametrize("name", few(STACKS, "two"))
def test_chains_are_blocks_of_the_derivative_of_the_whole_pass(name):
    parameters, found = analysis(name)
    cell, inputs = stacked(STACKS[name]), problem(name)[2]

    def last(state):
        return jax.lax.scan(lambda s, x: (cell.advance(parameters, x, s), None), state, inputs)[0]

    whole = np.asarray(jax.jacrev(last)(jnp.zeros(cell.size(0))))
    extents = list(cell.extents(0).values())
    names = {f"layer{m.number}": (j, j) for j, m in enumerate(cell.members)}
    for j, one in enumerate(cell.members):
        names |= {f"{other.number}->{one.number}": (i, j) for i, other in enumerate(cell.members[:j])}
    assert {chain.name for chain in found.chains} == {"full", *names}
    for chain_name, (i, j) in names.items():
        chain, block = found.chain(chain_name), whole[extents[j], extents[i]]
        values = np.linalg.svd(block, compute_uv=False)
        assert chain.size == min(block.shape)
        mine = chain.spectra[0].log10_singular_values
        np.testing.assert_allclose(10 ** mine[0], values[0], rtol=1e-9)
        np.testing.assert_allclose(10**mine, values, rtol=1e-9, atol=1e-12 * values[0])
    np.testing.assert_allclose(sum(found.shares.values()), 1, atol=1e-9)


@pytest.mark.parametrize("name", few(STACKS, "two"))
def test_steps_of_more_digits_are_the_same(name):
    """Of layers of different sizes, that read parts of what others put out."""
    cell, parameters, inputs, found, reference = problem(name)
    between = {layer for layer, each in found["paths"].items() if each["input"]}
    digits = Digits(cell, parameters, inputs[:2], found["states"][:3], between)
    chain = blocked(cell, parameters, found | {"digits": Some(digits)})
    for t in range(2):
        balls = np.vectorize(float)(chain.balls(t, 128))
        np.testing.assert_allclose(balls, sum(reference.values())[t], rtol=0, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cut"), [("two", ()), ("units", ()), ("units", "layer2"), ("dense below", "layer1")]
)
@pytest.mark.usefixtures("paths_alone")
def test_top_values_without_jacobians_are_the_same(name, cut):
    _, every = analysis(name, cut=cut)
    _, few = analysis(name, cut=cut, top=2)
    assert [chain.name for chain in few.chains] == [chain.name for chain in every.chains]
    for chain in every.chains:
        top = few.chain(chain.name)
        expected = chain.spectra[0].log10_singular_values[:2]
        np.testing.assert_allclose(top.spectra[0].log10_singular_values, expected, atol=1e-8)
        assert top.size == chain.size
        assert top.horizon == chain.horizon
    for path, share in every.shares.items():
        np.testing.assert_allclose(few.shares[path], share, atol=1e-9)


@pytest.mark.slow
def test_segments_do_not_change_the_result(monkeypatch):
    _, whole = analysis("units")
    monkeypatch.setattr("gradscope.linearize.sequence.SEGMENT_BYTES", 1)
    _, parts = analysis("units")
    for chain in whole.chains:
        mine = parts.chain(chain.name).spectra[0]
        np.testing.assert_allclose(
            mine.log10_singular_values, chain.spectra[0].log10_singular_values, atol=1e-10
        )
        np.testing.assert_allclose(mine.log10_norm_by_lag[-1], chain.by_lag[0, -1], atol=1e-10)


def test_what_a_member_reads_must_be_its_input():
    first = Member(find("rnn"), 4, D, 0, ((0, D),))
    with pytest.raises(InputError, match="layer1 has input size 3, but what it reads has 4 columns"):
        stacked((first, Member(find("rnn"), 4, 3, 1, (0,))))
    with pytest.raises(InputError, match="layer1 reads member 1, expected one of the 1 before it"):
        stacked((first, Member(find("rnn"), 4, 4, 1, (1,))))


def test_the_cell_of_a_stack_that_fails_is_named():
    def step(p, x, s):
        raise ValueError("no such thing")

    bad = Cell("bad", lambda n, d: {"W": (n, d)}, step)
    cell = stacked((Member(find("rnn"), 4, D, 0, ((0, D),)), Member(bad, 4, 4, 1, (0,))))
    with pytest.raises(InputError, match="cell bad: its step failed with ValueError: no such thing"):
        gradscope.analyze(cell=cell, hidden=1, input_size=D, steps=3)
