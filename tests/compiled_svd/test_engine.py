"""The compiled engine against exact arithmetic and the host engine; and what it leaves to that."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from oracles import chains
from oracles.arrays import WholeSteps, mixed
from oracles.reference import allowed, reference

from gradscope.compiled_svd import passes
from gradscope.compiled_svd.engine import compiled_spectra
from gradscope.compiled_svd.numbers import inverse_of, permuted_by
from gradscope.compiled_svd.step_arrays import LayerShape, Shape
from gradscope.product_svd.spectrum import spectrum

EPS = float(np.finfo(float).eps)
# What entries of Jacobians are right to.
ENTRY_ERROR = 4 * EPS
# One program serves all of these tests.
M, STEPS = 6, 32
# Chains whose zeros, or the rounding of whose entries, the host engine looks at.
LEFT = {"lstm f~1 i~0 o~1", "dead unit", "zero column", "dead both", "relu", "ones step", "integer rank"}
LEFT |= {"duplicated rows"}


def found(*stacks, entry_error=ENTRY_ERROR, length=None):
    sources = [WholeSteps(stack, length) for stack in stacks]
    return compiled_spectra(sources, jax.devices(), entry_error)


@pytest.fixture
def as_accelerator(monkeypatch):
    """All passes that fit go through one call, as on a GPU."""
    monkeypatch.setattr(passes, "one_for_each_core", lambda devices: False)


@pytest.fixture
def in_turn(as_accelerator, monkeypatch):
    """As on an accelerator with chains that are too large for segments of time."""
    monkeypatch.setattr(passes, "in_segments", lambda shape, devices: False)


def agree(one, other):
    """Both within their estimates, and lags as far as they are above a gain of 1e-200."""
    assert one.exact_zeros == other.exact_zeros == 0
    difference = np.abs(one.log10_singular_values - other.log10_singular_values)
    assert (difference <= one.log10_error + other.log10_error).all()
    first = abs(one.log10_singular_values[0] - other.log10_singular_values[0])
    assert first <= one.log10_norm_error + other.log10_norm_error
    np.testing.assert_allclose(one.log10_norm_by_lag, other.log10_norm_by_lag, rtol=1e-11, atol=1e-11)
    if one.log10_singular_values[0] - one.log10_singular_values[1] > 1e-3:
        assert abs(one.left @ other.left) == pytest.approx(1, abs=1e-9)
        assert one.left @ other.left * (one.right @ other.right) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", chains.CHAINS)
def test_against_exact_arithmetic(name):
    chain = chains.CHAINS[name](M, STEPS, 0)
    (one,) = found(chain)
    assert (one is None) == (name in LEFT)
    if one is not None:
        within_the_estimate(one, chain)


def within_the_estimate(one, chain):
    """Of exact arithmetic, and the estimate not far too small."""
    true = reference(chain)
    assert one.engine == "compiled"
    assert one.exact_zeros == true.exact_zeros == 0
    errors = np.abs(true.log10_errors(one.log10_singular_values))
    ulp = np.spacing(np.abs(one.log10_singular_values))
    assert (errors - ulp <= np.maximum(allowed(chain, errors - ulp), one.log10_error)).all()
    assert one.log10_error >= errors.max() / 10


def test_mixed_chains_agree_with_the_host():
    rng = np.random.default_rng(0)
    stacks = [mixed(rng, M, STEPS) for _ in range(60)]
    both = list(zip(found(*stacks), stacks, strict=True))
    sure = [(one, stack) for one, stack in both if one is not None]
    assert len(sure) > 40
    for one, stack in sure:
        agree(one, spectrum(stack, by_lag=True, entry_error=ENTRY_ERROR))


def test_pivots_that_the_rounding_of_the_entries_explains_are_left_to_the_host():
    """A pivot of 1e-12 is nothing of entries right to float32, and a value of those right to float64."""
    chain = np.random.default_rng(6).normal(size=(STEPS, M, M))
    u, _, v = np.linalg.svd(chain[5])
    chain[5] = (u * [1, 1, 1, 1, 1, 3e-12]) @ v
    (precise,), (rounded,) = found(chain), found(chain, entry_error=4 * float(np.finfo(np.float32).eps))
    assert rounded is None
    agree(precise, spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR))


def test_entries_right_to_float32():
    rng, entry_error = np.random.default_rng(7), 4 * float(np.finfo(np.float32).eps)
    stacks = [mixed(rng, M, STEPS) for _ in range(30)]
    both = [(one, s) for one, s in zip(found(*stacks, entry_error=entry_error), stacks, strict=True) if one]
    assert len(both) > 15
    for one, stack in both:
        agree(one, spectrum(stack, by_lag=True, entry_error=entry_error))


def mixed_chains(count):
    rng = np.random.default_rng(0)
    return [mixed(rng, M, STEPS) for _ in range(count)]


def sure_of(stacks, length=None):
    both = list(zip(found(*stacks, length=length), stacks, strict=True))
    both = [(one, stack) for one, stack in both if one is not None]
    assert len(both) > 0.7 * len(stacks)
    return both


@pytest.mark.parametrize("some", [6, pytest.param(51, marks=pytest.mark.slow)])
def test_segments_of_time_side_by_side(some, as_accelerator):
    """One batch of all: against exact arithmetic, and with every lag against the host."""
    named = [make(M, STEPS, 0) for name, make in chains.CHAINS.items() if name not in LEFT][:some]
    for one, stack in sure_of([*named, *mixed_chains(some - len(named))]):
        agree(one, spectrum(stack, by_lag=True, entry_error=ENTRY_ERROR))
        if any(stack is other for other in named):
            within_the_estimate(one, stack)


@pytest.mark.slow  # programs of their own, as are the next ones
def test_a_batch_is_what_each_is_alone(in_turn):
    """The norms of some are found long before those of others."""
    for one, stack in sure_of(mixed_chains(32)):
        agree(one, spectrum(stack, by_lag=True, entry_error=ENTRY_ERROR))


@pytest.mark.slow
def test_segments_of_time_within_those_of_memory(as_accelerator):
    """Which are no multiples of them: the earliest begins with steps that change nothing."""
    for one, stack in sure_of(mixed_chains(32), length=11):
        agree(one, spectrum(stack, by_lag=True, entry_error=ENTRY_ERROR))


def test_segments_are_one_chain():
    chain = np.random.default_rng(2).normal(size=(STEPS, M, M)) / 2
    (whole,), (parts,) = found(chain), found(chain, length=13)
    agree(whole, parts)
    agree(parts, spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR))


def test_exact_entries_that_deserve_more_are_left_to_the_host():
    chain = chains.CHAINS["jordan"](M, STEPS, 0)
    (one,) = found(chain, entry_error=EPS)
    exact = spectrum(chain, by_lag=True)
    assert one is None or np.abs(one.log10_singular_values - exact.log10_singular_values).max() < 1e-10


@pytest.mark.slow  # a program of its own
def test_large_chains_by_strips_and_steps_at_once():
    """160 states: N by strips; well conditioned steps, several of them at once, then others."""
    rng = np.random.default_rng(3)
    chain = np.linalg.qr(rng.normal(size=(12, 160, 160)))[0]
    chain[:6] = rng.normal(size=(6, 160, 160)) / 12
    (one,) = found(chain)
    agree(one, spectrum(chain, by_lag=True, entry_error=ENTRY_ERROR))


def test_numbers_that_do_not_fit_side_by_side_are_left_to_the_host():
    chain = np.random.default_rng(4).normal(size=(STEPS, M, M))
    chain[:, 0] *= 1e150
    assert found(chain) == [None]


def test_as_many_passes_as_an_accelerator_has_room_for():
    small, large = (Shape((LayerShape(2, 4, 1, n, False),)) for n in (16, 4096))
    assert passes.at_once(small, 1000) == 1000
    assert passes.at_once(large, 1000) == 1


ON_DEVICES = """
import sys, jax, numpy as np
from oracles.arrays import WholeSteps
from gradscope.compiled_svd import passes
from gradscope.compiled_svd.engine import compiled_spectra
from gradscope.compiled_svd.numbers import inverse_of, permuted_by
from gradscope.product_svd.spectrum import spectrum
assert len(jax.devices()) == 3
passes.one_for_each_core = lambda devices: False
stacks = np.random.default_rng(5).normal(size=(4, 12, 5, 5))
found = compiled_spectra([WholeSteps(stack) for stack in stacks], jax.devices(), 1e-15)
for one, stack in zip(found, stacks, strict=True):
    other = spectrum(stack, by_lag=True, entry_error=1e-15)
    apart = np.abs(one.log10_singular_values - other.log10_singular_values)
    assert (apart <= one.log10_error + other.log10_error).all()
    assert np.abs(one.log10_norm_by_lag - other.log10_norm_by_lag).max() < 1e-11
"""


@pytest.mark.slow  # a process with devices of its own
def test_pieces_are_dealt_to_devices():
    tests = Path(__file__).parents[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "3", "PYTHONPATH": f"{tests}:{tests.parent}"}
    subprocess.run([sys.executable, "-c", ON_DEVICES], env=environment, check=True)


def test_rows_by_the_swaps_of_an_lu() -> None:
    """Where each row came from and went to, against swaps done one after the other."""
    rng = np.random.default_rng(0)
    swaps = np.array([[rng.integers(k, 13) for k in range(13)] for _ in range(20)], np.int32)
    came = np.tile(np.arange(13, dtype=np.int32), (20, 1))
    for row, each in zip(came, swaps, strict=True):
        for k, other in enumerate(each):
            row[[k, other]] = row[[other, k]]
    assert (permuted_by(swaps) == came).all()
    assert (inverse_of(came) == np.argsort(came, axis=1)).all()
