"""Who carries the gradient: each path's share in the full chain's top singular value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
    if jacobians.beyond:
        return _far_shares(jacobians, left, log10_norm)
    count = len(jacobians.starts)
    ends = [(left, 0.0)]  # b_t and its size where each segment ends, the last first
    for i in range(count - 1, 0, -1):
        vectors, logs = propagate(transposed(jacobians.segment(i)), *ends[-1])
        ends.append((vectors[-1], logs[-1]))
    start, found = (right, 0.0), []
    for i in range(count):
        segment = jacobians.segment(i)
        forward, forward_log = propagate(iter(segment), *start)
        backward, backward_log = propagate(transposed(segment), *ends.pop())
        with np.errstate(over="ignore", invalid="ignore"):
            size = forward_log[:-1] + backward_log[-2::-1] - log10_norm * np.log(10.0)
            carried = segment.carried(backward[-2::-1], forward[:-1])
            found.append(_certain({name: each * np.exp(size) for name, each in carried.items()}))
        start = (forward[-1], forward_log[-1])
    return {name: np.concatenate([share[name] for share in found]) for name in found[0]}


def _certain(share: Mapping[str, Array]) -> dict[str, Array]:
    """The shares of steps where they add up to 1, NaN where they do not."""
    wrong = ~(np.abs(np.sum(list(share.values()), axis=0) - 1) < _ADDS_UP)  # not >=, or NaN passes
    return {name: np.where(wrong, np.nan, each) for name, each in share.items()}


def _far_shares(
    jacobians: JacobianChain | SegmentedChain, left: Array, log10_norm: float
) -> dict[str, Array]:
    """The same where float64 does not hold the steps: entries of a_t and b_t have exponents of their own."""
    last = far_left(jacobians, left)
    starts = [_through(_backward(jacobians), last)]
    for i in range(len(jacobians.starts)):
        starts.append(_through(_forward(jacobians.segment(i)), starts[-1]))
    whole = wide_product(last.transposed, starts.pop())[0][0, 0]
    # Of terms that cancel below the digits of these steps sigma_1 is known by more (product_svd.more_digits).
    own = (whole.log10 - wide_product(last.transposed, last)[0][0, 0].log10) / 2
    if not abs(own - log10_norm) * math.log(10) < _ADDS_UP:
        return {name: np.full(len(jacobians), np.nan) for name in jacobians.segment(0).names}
    found, later = [], last
    for i in range(len(jacobians.starts) - 1, -1, -1):
        segment = jacobians.segment(i)
        forward = list(far_vectors(_forward(segment), starts.pop()))
        backward = list(far_vectors(far_transposed(segment), later))
        later = backward[-1]
        found.append(_certain(_far_carried(segment, backward[-2::-1], forward[:-1], whole)))
    return {name: np.concatenate([share[name] for share in found[::-1]]) for name in found[0]}


def _far_carried(
    segment: JacobianChain, backward: Sequence[Wide], forward: Sequence[Wide], whole: Wide
) -> dict[str, Array]:
    """b_t^T J_t a_t of every path over the whole, whatever the size of J's entries."""
    found = {name: np.zeros(len(forward)) for name in segment.names}
    for t, (b, a) in enumerate(zip(backward, forward, strict=True)):
        for name, rows, columns, step in segment.wide_terms(t):
            carried = wide_product(b[rows].transposed, wide_product(step, a[columns])[0])[0][0, 0]
            found[name][t] = carried.over(whole)
    return found


def far_left(jacobians: JacobianChain | SegmentedChain, left: Array) -> Wide:
    """(m, 1), the top left singular vector of a length of its own, with digits in its small entries too.

    Those of ``left`` are right to a rounding of its largest entry. Where the chain takes the large ones to
    nothing, all that is left of the gradient is carried by small ones: P P^T u has them.
    """
    right = _through(_backward(jacobians), Wide.of(left[:, None]))
    for i in range(len(jacobians.starts)):
        right = _through(_forward(jacobians.segment(i)), right)
    return right


def far_vectors(steps: Iterable[Wide], vector: Wide) -> Iterator[Wide]:
    """``vector`` (m, 1), and it after each step."""
    yield vector
    for step in steps:
        vector = wide_product(step, vector)[0]
        yield vector


def far_transposed(jacobians: JacobianChain) -> Iterator[Wide]:
    """The steps of the transposed chain, J_T^T first."""
    return (jacobians.wide(t).transposed for t in range(len(jacobians) - 1, -1, -1))


def _forward(jacobians: JacobianChain) -> Iterator[Wide]:
    return (jacobians.wide(t) for t in range(len(jacobians)))


def _backward(jacobians: JacobianChain | SegmentedChain) -> Iterator[Wide]:
    for i in range(len(jacobians.starts) - 1, -1, -1):
        yield from far_transposed(jacobians.segment(i))


def _through(steps: Iterable[Wide], vector: Wide) -> Wide:
    for step in steps:
        vector = wide_product(step, vector)[0]
    return vector


def transposed(jacobians: JacobianChain) -> Iterator[Array]:
    """The steps of the transposed chain, J_T^T first."""
    return (jacobians[t].T for t in range(len(jacobians) - 1, -1, -1))


def propagate(steps: Iterable[Array], vector: Array, log: float) -> tuple[Array, Array]:
    """Unit vectors (T + 1, m) along the chain and the natural logarithm (T + 1,) of their lengths."""
    vectors, logs = [vector], [log]
    for step in steps:
        vector = step @ vector
        largest = np.abs(vector).max()
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN from where it vanishes
            norm = float(np.linalg.norm(vector / largest))  # squares may not fit where the entries do
            vector = vector / largest / norm
            vectors.append(vector)
            logs.append(logs[-1] + np.log(norm) + np.log(largest))
    return np.array(vectors), np.array(logs)
