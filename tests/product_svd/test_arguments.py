"""What is asked of spectrum and cannot be meant is refused in one line that says what can."""

from __future__ import annotations

import numpy as np
import pytest

import gradscope

CHAIN = np.stack([0.5 * np.eye(3)] * 4)


class Tensor:
    """As a tensor that requires grad: NumPy may not have it."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top": 2.5}, "top is 2.5, expected a whole number"),
        ({"top": "1"}, "top is '1', expected a whole number"),
        ({"top": True}, "top is True"),
        ({"top": 4}, "top is 4, expected 1 to 3"),
        ({"accuracy": "x"}, "accuracy is 'x', expected one of full, fast"),
        ({"entry_error": np.nan}, "entry_error is nan, expected a number from 0"),
        ({"entry_error": -1.0}, "entry_error is -1.0"),
        ({"entry_error": "a"}, "entry_error is 'a'"),
        ({"floor": np.nan}, "floor is nan"),
        ({"workers": 0}, "workers is 0, expected a whole number from 1"),
        ({"window": (slice(0, 9), slice(0, 2))}, "within the 3 states"),
        ({"window": (slice(2, 2), slice(0, 2))}, "at least one row and column"),
        ({"window": (0, 1)}, "expected two slices"),
        ({"window": 3}, "expected two slices"),
    ],
)
def test_options(options, says):
    with pytest.raises(gradscope.InputError, match="expected") as refused:
        gradscope.spectrum(CHAIN, **options)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


LARGE = np.array([[[2**53 + 1, 0], [0, 1]]])


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        (np.float64(3.0), "step 0 has shape ()"),
        (None, "step 0 has shape ()"),
        (np.ones(3), "step 0 has shape ()"),
        ([Tensor()], "Tensor that requires grad"),
        ([[[1.0, 2.0], [3.0]]], "step 0 is no array"),
        (np.ma.masked_less(CHAIN, 1.0), "masked entries"),
        (LARGE, "int64 that float64 would round"),
        (LARGE.astype(np.uint64), "uint64 that float64 would round"),
        pytest.param(
            CHAIN.astype(np.longdouble) / 3,
            "that float64 would round",
            marks=pytest.mark.skipif(np.finfo(np.longdouble).nmant == 52, reason="it is float64 here"),
        ),
    ],
)
def test_chains(chain, says):
    with pytest.raises(gradscope.InputError) as refused:
        gradscope.spectrum(chain)
    assert says in str(refused.value)


@pytest.mark.parametrize("dtype", [np.int64, np.longdouble, np.float32, np.bool_])
def test_what_float64_holds_is_taken(dtype):
    chain = np.array([[[1, 0], [0, 1]]] * 3).astype(dtype)
    assert gradscope.spectrum(chain, top=np.int64(1), window=(slice(-2, None), slice(0, 2))).exact_zeros == 0
    assert gradscope.spectrum(np.array([[[-(2**60), 0], [0, 1]]])).log10_singular_values[0] == pytest.approx(
        60 * np.log10(2)
    )
