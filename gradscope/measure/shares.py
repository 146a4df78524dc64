"""Who carries the gradient: each path's share in the full chain's top singular value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from gradscope.custom_types import Array
from gradscope.linearize.jacobian_chain import JacobianChain
from gradscope.linearize.segmented import SegmentedChain
from gradscope.product_svd.extended_range_array import Wide, wide_product
from gradscope.product_svd.spectrum import Spectrum

# Shares whose sum is further from 1 are lost in rounding.
_ADDS_UP = 1e-3
_EPS = float(np.finfo(np.float64).eps)


def error_of_shares(
    full: Spectrum, found: Mapping[str, Array], again: Mapping[str, Array] | None = None
) -> float:
    """Estimated error of the means over the steps of shares, the largest of the paths, NaN where not known.

    full : whose vectors they were found from. Where all values were computed the errors of its vectors are
    that of sigma_1, relative, over 1 - sigma_2 / sigma_1 (Wedin 1972). The top values converge long before
    their vectors do; again : the shares from the vectors that these become on their way through the chain,
    P v and P^T u, by which sigma_2 / sigma_1 of their error is left.
    """
    each = np.array(list(found.values()))
    known = np.isfinite(each).all(axis=0)
    if not known.any():
        return math.nan
    off = float(np.abs(each[:, known].sum(axis=0) - 1).mean())
    if len(each) == 1:  # it carries all there is, whatever the vectors are
        return off
    values = full.log10_singular_values
    if len(values) == 1 and len(full.right) > 1:
        return math.nan
    second = 10.0 ** float(values[1] - values[0]) if len(values) > 1 and np.isfinite(values[1]) else 0.0
    error = math.log(10) * full.log10_norm_error * float(np.abs(each[:, known]).sum(axis=0).mean())
    if again is not None:
        error += float(np.abs(each - np.array(list(again.values())))[:, known].mean(axis=1).max())
    return error / max(1.0 - second, _EPS) + off


def shares(
    jacobians: JacobianChain | SegmentedChain, left: Array, right: Array, log10_norm: float
) -> dict[str, Array]:
    """Each path's share in carrying the gradient at every step, {path: (T,)}; they sum to 1.

    With ``left`` u and ``right`` v the top singular vectors (m,) of the chain and sigma_1 = 10 **
    ``log10_norm``, a_t = J_t ... J_1 v and b_t = (J_T ... J_(t+1))^T u, the share of path g at step t
    is b_t^T J_(g,t) a_(t-1) / sigma_1 = d log sigma_1 / d log alpha_(g,t) for J_t = sum_g alpha_g J_g.
    Signed, and above 1 where another path works against. NaN where rounding leaves nothing of a_t or b_t
    beside a gain on the way that is 1e13 times sigma_1, and everywhere if sigma_1 is zero.
    """
    if log10_norm == -np.inf:
        return {name: np.full(len(jacobians), np.nan) for name in jacobians.segment(0).names}
    count = len(jacobians.starts)
    ends = [(left, 0.0)]  # b_t and its size where each segment ends, the last first
    for i in range(count - 1, 0, -1):
        vectors, logs = propagate(transposed(jacobians.segment(i)), *ends[-1])
        ends.append((vectors[-1], logs[-1]))
    start, found = (right, 0.0), []
    for i in range(count):
        segment = jacobians.segment(i)
        forward, forward_log = propagate(_steps(segment), *start)
        backward, backward_log = propagate(transposed(segment), *ends.pop())
        with np.errstate(over="ignore", invalid="ignore"):
            size = forward_log[:-1] + backward_log[-2::-1] - log10_norm * np.log(10.0)
            if segment.beyond:
                carried = _far_carried(segment, backward[-2::-1], forward[:-1], size)
            else:
                carried = segment.carried(backward[-2::-1], forward[:-1])
                carried = {name: each * np.exp(size) for name, each in carried.items()}
            found.append(_certain(carried))
        start = (forward[-1], forward_log[-1])
    return {name: np.concatenate([share[name] for share in found]) for name in found[0]}


def _certain(share: Mapping[str, Array]) -> dict[str, Array]:
    """The shares of steps where they add up to 1, NaN where they do not."""
    wrong = ~(np.abs(np.sum(list(share.values()), axis=0) - 1) < _ADDS_UP)  # not >=, or NaN passes
    return {name: np.where(wrong, np.nan, each) for name, each in share.items()}


def _far_carried(segment: JacobianChain, backward: Array, forward: Array, size: Array) -> dict[str, Array]:
    """b_t^T J_t a_t e^size_t of every path, of b and a (T, m), whatever the size of J's entries."""
    found = {name: np.zeros(len(size)) for name in segment.names}
    for t, (b, a) in enumerate(zip(backward, forward, strict=True)):
        for name, rows, columns, step in segment.wide_terms(t):
            through = wide_product(step, Wide.of(a[columns, None]))[0]
            carried = wide_product(Wide.of(b[None, rows]), through)[0][0, 0]
            found[name][t] = carried.mantissa * np.exp(size[t] + float(carried.exponent) * np.log(2.0))
    return found


def _steps(jacobians: JacobianChain) -> Iterator[Array | Wide]:
    return (jacobians.wide(t) if jacobians.beyond else jacobians[t] for t in range(len(jacobians)))


def transposed(jacobians: JacobianChain) -> Iterator[Array | Wide]:
    """The steps of the transposed chain, J_T^T first."""
    for t in range(len(jacobians) - 1, -1, -1):
        yield jacobians.wide(t).transposed if jacobians.beyond else jacobians[t].T


def propagate(steps: Iterable[Array | Wide], vector: Array, log: float) -> tuple[Array, Array]:
    """Unit vectors (T + 1, m) along the chain and the natural logarithm (T + 1,) of their lengths."""
    vectors, logs = [vector], [log]
    for step in steps:
        shift = 0
        if isinstance(step, Wide):
            through = wide_product(step, Wide.of(vector[:, None]))[0]
            shift = int(through.exponent.max())
            vector = Wide(through.mantissa, through.exponent - shift).float64()[:, 0]
        else:
            vector = step @ vector
        largest = np.abs(vector).max()
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN from where it vanishes
            norm = float(np.linalg.norm(vector / largest))  # squares may not fit where the entries do
            vector = vector / largest / norm
            vectors.append(vector)
            logs.append(logs[-1] + np.log(norm) + np.log(largest) + shift * np.log(2.0))
    return np.array(vectors), np.array(logs)
