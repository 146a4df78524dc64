"""What is measured survives its way from process to process; what is known of several blocks together."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import pytest

from gradscope.measure.measured import Measured, direct_sum
from gradscope.product_svd.spectrum import spectrum


def test_what_is_encoded_is_decoded():
    chain = np.random.default_rng(0).normal(size=(7, 3, 3))
    one = Measured(
        {"full": spectrum(chain, by_lag=True)},
        {"R": np.arange(7.0)},
        {"f": np.array([1.0, 2, 3])},
        shares_error=1e-9,
    )
    text = json.dumps(one.encode(), default=lambda array: array.tolist())
    again = Measured.decode(json.loads(text))
    assert again.shares_error == 1e-9
    for field in fields(Measured):
        before, after = getattr(one, field.name), getattr(again, field.name)
        if not isinstance(before, Mapping):
            np.testing.assert_equal(after, before)
            continue
        assert before.keys() == after.keys()
        for name, value in before.items():
            if field.name == "spectra":
                for part, expected in vars(value).items():
                    np.testing.assert_array_equal(getattr(after[name], part), expected)
            else:
                np.testing.assert_array_equal(after[name], value)


STEPS = 5


def diagonal(*log10):
    """A chain whose product has these singular values, and its spectrum: what is known of it is known."""
    values = 10.0 ** (np.array(log10, float) / STEPS)
    return spectrum(np.stack([np.diag(values)] * STEPS), by_lag=True)


def test_of_the_largest_values_of_blocks_as_many_are_told_as_are_sure():
    """The fifth of six is of the block of which three were asked for: it is no value beside theirs."""
    blocks = [diagonal(5, 4, 1, 0.5), diagonal(3, 2, -3, -4)]
    np.testing.assert_allclose(direct_sum(blocks).log10_singular_values, [5, 4, 3, 2, 1, 0.5, -3, -4])
    some = direct_sum([one.first(3) for one in blocks])
    np.testing.assert_allclose(some.log10_singular_values, [5, 4, 3])
    assert some.exact_zeros == 0


def test_values_that_may_be_below_a_lost_one_are_lost():
    lost = replace(diagonal(4, 1, 0), log10_singular_values=np.array([4, 1, np.nan]), lost=1)
    found = direct_sum([lost, diagonal(2, 0.5, -1)])
    np.testing.assert_allclose(found.log10_singular_values, [4, 2, 1, *[np.nan] * 3])
    assert (found.lost, found.exact_zeros) == (3, 0)


@pytest.mark.parametrize("first", [True, False])
def test_the_norm_is_lost_where_that_of_a_block_is(first):
    lost = replace(diagonal(4), log10_singular_values=np.array([np.nan]), lost=1)
    found = direct_sum([lost, diagonal(2, 0)] if first else [diagonal(2, 0), lost])
    assert np.isnan(found.log10_singular_values).all()
    assert found.lost == 3


def test_the_error_of_the_norm_is_that_of_the_block_that_may_be_larger():
    sure, unsure = diagonal(2, 0), replace(diagonal(1.75, 0), log10_norm_error=0.5)
    assert direct_sum([sure, unsure]).log10_norm_error == pytest.approx(0.25)
    assert direct_sum([sure, diagonal(1.75, 0)]).log10_norm_error == sure.log10_norm_error
