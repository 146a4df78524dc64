"""What is measured of a sequence survives its way from process to process, every field of it."""

import json
from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from gradscope.measure.measured import Measured
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
