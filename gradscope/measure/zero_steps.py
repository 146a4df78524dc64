"""Chains of which some step is zero: of what they are, only the steps after the last of these are left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradscope.linearize.cell_chain import CellChain
from gradscope.linearize.jacobian_chain import JacobianChain
from gradscope.linearize.segmented import SegmentedChain
from gradscope.product_svd.spectrum import Spectrum


def after_zero_steps(
    chain: JacobianChain | SegmentedChain,
) -> tuple[CellChain | SegmentedChain, int] | None:
    """The steps after the last that is seen to be zero, and how many come before; None where none is.

    As of the forget gate's path, the first step of which is zero where c begins at zero. Looked for in the
    first segment, which has another step where there is one.
    """
    first = chain.segment(0)
    if not isinstance(first, CellChain) or not len(first.zero_steps):
        return None
    left_out = int(first.zero_steps[-1]) + 1
    if left_out == first.steps < chain.steps:
        return None
    rest = first.after(left_out)
    if isinstance(chain, SegmentedChain) and len(chain.starts) > 1:
        return chain.after(left_out, rest), left_out
    return rest, left_out


def with_zero_steps(spectrum: Spectrum, left_out: int) -> Spectrum:
    """The spectrum of all steps, of that of those after ``left_out``: a step that is zero leaves nothing."""
    size, nothing = len(spectrum.left), np.zeros_like(spectrum.left)
    errors = spectrum.log10_norm_error_by_lag
    return replace(
        spectrum,
        log10_singular_values=np.full(size, -np.inf),
        exact_zeros=size,
        log10_error=0.0,
        log10_norm_error=0.0,
        left=nothing,
        right=nothing,
        log10_norm_by_lag=np.append(np.asarray(spectrum.log10_norm_by_lag), np.full(left_out, -np.inf)),
        lost=0,
        log10_norm_error_by_lag=None if errors is None else np.append(errors, np.full(left_out, np.nan)),
    )
