"""Who carries the gradient: each path's share in the full chain's top singular value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from gradscope.custom_types import Array
from gradscope.linearize.jacobian_chain import JacobianChain
from gradscope.linearize.segmented import SegmentedChain

# Shares whose sum is further from 1 are lost in rounding.
_ADDS_UP = 1e-3


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
        forward, forward_log = propagate(segment, *start)
        backward, backward_log = propagate(transposed(segment), *ends.pop())
        with np.errstate(over="ignore", invalid="ignore"):
            scale = np.exp(forward_log[:-1] + backward_log[-2::-1] - log10_norm * np.log(10.0))
            carried = segment.carried(backward[-2::-1], forward[:-1])
            found.append(_certain({name: each * scale for name, each in carried.items()}))
        start = (forward[-1], forward_log[-1])
    return {name: np.concatenate([share[name] for share in found]) for name in found[0]}


def _certain(share: Mapping[str, Array]) -> dict[str, Array]:
    """The shares of steps where they add up to 1, NaN where they do not."""
    wrong = ~(np.abs(np.sum(list(share.values()), axis=0) - 1) < _ADDS_UP)  # not >=, or NaN passes
    return {name: np.where(wrong, np.nan, each) for name, each in share.items()}


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
