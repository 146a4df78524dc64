"""Plain products side by side, against exact arithmetic; and what they lose is left to others."""

import numpy as np
import pytest
from oracles import chains
from oracles.few import few
from oracles.first_value import check_first, missed
from oracles.reference import reference

from gradscope.product_svd.lobpcg import leading_left
from gradscope.product_svd.plain_product import GOOD, InColumns, PlainProducts
from gradscope.product_svd.spectrum import EPS, plain_spectra
from gradscope.product_svd.steps import WILD, span

# Those whose values are known to be there, so that no test passes because all were left out.
FOUND = ("lstm", "gru", "tanh", "orthogonal", "identity", "clustered")


def values(*stacks, **options):
    """What is found of stacks (T, m, m), in two parts each: the last column a part of its own."""
    joint = np.stack(stacks, axis=1)
    steps = (
        InColumns([step[:, :, :-1].copy(), step[:, :, -1:].copy()], span(np.abs(step)))
        for step in joint[::-1]
    )
    shape = joint.shape[1:3]
    return plain_spectra(steps, len(joint), shape, options.pop("entry_error", EPS), **options)


@pytest.mark.parametrize("name", few(chains.CHAINS, "lstm", "jordan", "clustered"))
def test_against_exact_arithmetic(name):
    check(name, 8, 60)


@pytest.mark.slow
def test_of_a_larger_chain():
    check("lstm", 24, 60)


def check(name, m, steps):
    chain = chains.CHAINS[name](m, steps, 0)
    found, beside = values(chain, chains.CHAINS["gru"](m, steps, 1))
    assert beside is not None
    if found is None:
        assert name not in FOUND
        return
    check_first(found, chain, reference(chain))


def test_what_later_steps_leave_nothing_of_is_left_to_others():
    """From the output end the first block grows to 2^120, and then dies: the other was rounded away."""
    sizes = np.concatenate([np.full(100, 1e-3), np.full(120, 2.0)])
    found, sound = values(chains.two_blocks(sizes), chains.two_blocks(np.full(220, 2.0)))
    assert found is None
    assert sound.log10_singular_values[0] == pytest.approx(220 * np.log10(2), abs=1e-11)


@pytest.mark.parametrize("rows", [20, 60])
@pytest.mark.parametrize("spread", [1e-2, 1e-9])
def test_the_largest_of_values_that_are_near_one_another(rows, spread):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(3, rows, rows)))[0] for _ in range(2))
    values = 1 - spread * rng.uniform(size=(3, rows))
    values[:, 0] = 1.0
    found = leading_left((left * values[:, None]) @ right, rng.normal(size=(3, rows)), rng)
    np.testing.assert_allclose(found.sigma, 1.0, rtol=0, atol=1e-12)


def test_blocks_that_do_not_meet_and_are_almost_alike():
    """Steps of LOBPCG do not tell two values apart that differ in the seventh digit, but find their size."""
    chain = chains.CHAINS["gru"](36, 9, 0)
    both = np.zeros((9, 72, 72))
    both[:, :36, :36] = both[:, 36:, 36:] = chain
    both[-1, 36:, 36:] *= 1 - 1e-6
    (found,) = values(both)
    assert found is not None
    products = [np.linalg.multi_dot([np.eye(36), *chain[::-1][:lag]]) for lag in range(1, 10)]
    norms = [np.log10(np.linalg.norm(product, 2)) for product in products]
    np.testing.assert_allclose(found.log10_norm_by_lag, norms, rtol=0, atol=GOOD)


def test_products_that_are_zero_or_wild_are_left_to_others():
    chain = chains.CHAINS["lstm"](4, 20, 0)
    dead = chain.copy()
    dead[7] = 0.0
    found, sound = values(dead, chain)
    assert found is None
    assert sound is not None
    wild = chain.copy()
    wild[3, 0, 0] = 2.0 ** -(2 * WILD)
    assert values(wild) == [None]
    # What is left of such a product is no normal number; nothing is to warn of it either.
    gone = np.broadcast_to(np.eye(4), (20, 4, 4)).copy()
    gone[18], gone[17] = np.diag([1.0, 1e-170, 0.0, 0.0]), np.diag([0.0, 1e-150, 1.0, 1.0])
    assert values(gone, gone * 1e300) == [None, None]


def test_columns_that_are_zero_are_none_of_a_doubt():
    chain = chains.CHAINS["lstm"](8, 30, 0)
    chain[:, :, 2] = 0.0
    (found,) = values(chain)
    assert missed(reference(chain), found.log10_singular_values[0]) <= 1e-12


def test_lags_below_a_floor_are_bounds():
    chain = chains.CHAINS["lstm"](12, 60, 0) * 0.7
    (whole,) = values(chain)
    (bounded,) = values(chain, floor=np.log10(1e-3))
    exact, some = whole.log10_norm_by_lag, bounded.log10_norm_by_lag
    above = exact >= -3
    assert 5 < above.sum() < 55
    np.testing.assert_allclose(some[above], exact[above], atol=1e-10)
    assert (some >= exact - 1e-10).all()
    assert (some[~above] < -3 + np.log10(12) / 2).all()


def test_the_error_of_the_entries_is_in_the_estimate():
    """Entries changed by that much move the value by no more than is said, and by not much less."""
    chain, size = chains.CHAINS["lstm"](16, 80, 0), 1e-8
    (found,) = values(chain, entry_error=size)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(6, *chain.shape))
    moved = [
        abs(values(chain * (1 + size * sign))[0].log10_singular_values[0] - found.log10_singular_values[0])
        for sign in signs
    ]
    assert max(moved) <= found.log10_norm_error <= 1e3 * max(moved)


def joined(small, ratio):
    """(60, 48, 48) and log10 of its norms by lag: a direction as large as 1, and another as small as is said.

    After twelve steps from the output end, by then others are far smaller, both are taken to one, the first
    times ``ratio``: sqrt(ratio^2 + small^2) is left.
    """
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(61, 48, 48)))[0]
    inner = np.broadcast_to(np.diag([1.0, 1.0, *[0.1] * 46]), (60, 48, 48)).copy()
    inner[-1, 1, 1] = small
    inner[-12, :2, :2] = [[ratio, 0.0], [1.0, 0.0]]
    norms = np.zeros(60)
    norms[11:] = np.log10(np.hypot(ratio, small))
    return turns[1:] @ inner @ turns[:-1].transpose(0, 2, 1), norms


def test_rows_that_add_nothing_to_the_norms_are_shed():
    chain, norms = joined(1e-7, 1e-2)
    products = PlainProducts(60, (1, 48), norms=True)
    for step in chain[::-1]:
        products.times(InColumns([step[None]], 4.0))
    assert products.rows < 20
    (found,) = values(chain)
    error = np.abs(found.log10_norm_by_lag - norms).max()
    assert 1e-11 < error <= found.log10_norm_error < 1e-9  # (1e-7 / 1e-2)^2 / 2 / ln 10 is 2e-11


def test_rows_that_were_shed_and_come_to_count_are_left_to_others():
    chain, _ = joined(1e-7, 1e-4)
    assert values(chain) == [None]


def test_what_was_shed_may_be_all_that_is_left():
    sizes = np.concatenate([np.full(100, 1e-3), np.full(120, 2.0)])
    found, sound = values(chains.two_blocks(sizes, 24), chains.two_blocks(np.full(220, 2.0), 24))
    assert found is None
    assert sound.log10_singular_values[0] == pytest.approx(220 * np.log10(2), abs=1e-11)
