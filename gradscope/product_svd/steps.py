"""The steps of a chain: where they come from, checked, scaled, restricted to live states, perturbed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.product_svd.extended_range_array import Wide

# Powers of two by which a step is scaled stay inside float64.
MAX_EXPONENT = 1000
MAX_SPREAD = 900
# Bits that the entries of a step span from which on float64 does not hold all that becomes of them: what is
# left of such an entry after a step and an elimination is its cube.
WILD = 200.0
# Steps whose rows all have sizes in here are not scaled.
NEAR_ONE = (2.0**-6, 2.0**6)


# Rows and columns of the parts of a step that are added to it first, and, of the blocks on its diagonal,
# the states and how many parts they have.
Layout = tuple[tuple[tuple[slice, slice], ...], tuple[tuple[slice, int], ...]]


class UnknownDigitsError(Exception):
    """Digits that nobody can tell, or not with so many bits."""


class StepSource(Sequence[Array]):
    """Where the steps A_1 ... A_T of a chain come from: item t is the (m, m) matrix of step t, from 0.

    layout : how parts make up a step, None where they are blocks of columns; window : rows and columns of the
    product that the chain is about, None is all of it; beyond : whether float64 takes entries as 0 that are
    not: then ``wide`` has them, and ``span`` is known without a survey; rank : what that of the
    product is at most, by how its steps are made; m where nothing is known of it; operations : how many it
    takes ``balls`` to have all steps with as many digits as are wanted, infinite where it has them not.
    """

    layout: Layout | None = None
    window: tuple[slice, slice] | None = None
    beyond = False
    operations = math.inf

    @property
    def rank(self) -> int:
        """At most."""
        return int(np.shape(self[0])[0])

    def terms(self, t: int) -> list[Array]:
        """Matrices (m, m), float64, whose sum step t is but for the rounding of that sum."""
        return [np.asarray(self[t], dtype=np.float64)]

    @abstractmethod
    def parts(self, t: int) -> list[Array]:
        """What step t is made up of, float64, see ``multiplied``."""

    def wide(self, t: int) -> Wide:
        """Step t, with an exponent for every entry."""
        return Wide.of(np.asarray(self[t], np.float64))

    def balls(self, t: int, bits: int) -> Array:
        """Step t, of which the entries of ``self[t]`` are roundings, as balls of so many bits.

        Raises UnknownDigitsError where there are none, or more bits are needed to tell.
        """
        raise UnknownDigitsError

    @abstractmethod
    def survey(self) -> tuple[Array, bool]:
        """Bounds on the size of every row, (T, m), and whether certainly none is zero, nor any column.

        Only where that is certain the bounds are asked for. Without forming a step: where J w and J^T w of a
        random w have no zero, neither has J.
        """

    @property
    @abstractmethod
    def span(self) -> float:
        """Bits that the entries of a step span, at most; only asked for after a survey that was certain."""


class DenseSteps(StepSource):
    """Matrices as somebody gives them, which say nothing of themselves."""

    def __init__(self, matrices: Sequence[Array] | Array) -> None:
        self._matrices = matrices

    def __len__(self) -> int:
        return len(self._matrices)

    def __getitem__(self, t: Any) -> Any:
        return self._matrices[t]

    def parts(self, t: int) -> list[Array]:
        """The matrix itself."""
        return [np.asarray(self[t], dtype=np.float64)]

    def survey(self) -> tuple[Array, bool]:
        """Nothing is known before a look at every entry."""
        return np.zeros((len(self), 0)), False

    @property
    def span(self) -> float:
        """Nothing is known of it either."""
        return np.inf


@cache
def _no_weights(size: int) -> Array:
    return np.zeros(size, int)


def row_exponents(a: Array) -> Array:
    """(m,) integers: powers of two by which the rows of a are brought to about 1."""
    size = np.abs(a).max(axis=1, initial=0)
    if NEAR_ONE[0] < size.min(initial=1) and size.max(initial=1) < NEAR_ONE[1]:
        return _no_weights(len(size))
    exponents = np.clip(np.frexp(size)[1], -MAX_EXPONENT, MAX_EXPONENT)
    live = exponents[size > 0]
    # What meets a zero row is lost at the next step, but counts in the norm of this lag.
    exponents = np.where(size > 0, exponents, live.min(initial=MAX_EXPONENT))
    return np.asarray(np.maximum(exponents, max(live.max(initial=-MAX_EXPONENT) - MAX_SPREAD, -MAX_EXPONENT)))


def _all_row_exponents(sizes: Array) -> list[Array]:
    """``row_exponents`` of every step, from the sizes (T, m) of its rows, none of them zero."""
    exponents = np.clip(np.frexp(sizes)[1], -MAX_EXPONENT, MAX_EXPONENT)
    least = np.maximum(exponents.max(axis=1, keepdims=True) - MAX_SPREAD, -MAX_EXPONENT)
    near = (sizes.min(axis=1) > NEAR_ONE[0]) & (sizes.max(axis=1) < NEAR_ONE[1])
    return list(np.where(near[:, None], 0, np.maximum(exponents, least)))


class Steps:
    """The steps A_1 ... A_T of a chain, checked, each restricted to the states that matter.

    live[t] : indices of the states kept at time t = 0 ... T, of ``size``, or live is None where all are.
    weights[t] : (len(live[t + 1]),) exponents of the row sizes of step t; span : bits that the entries of a
    step span, at most.
    """

    # An exponent for every entry costs twice as much to make as to multiply, and parts of few states as much
    # as that: those of small chains are kept, for every run over them.
    _MOST_KEPT = 2**22

    def __init__(self, source: StepSource, live: list[Array] | None = None, size: int = 0) -> None:
        self.source = source
        self.live = live
        self.size = size
        self.weights: list[Array] = []
        self.span = 0.0
        self._kept: dict[int, Wide] = {}
        self._parts: dict[int, list[Array]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, t: int) -> Array:
        a = np.asarray(self.source[t], dtype=np.float64)
        return a if self.live is None else a[np.ix_(self.live[t + 1], self.live[t])]

    def times(self, y: Array, t: int) -> Array:
        """y @ A_(t+1), the rows of A scaled by 2**-weights[t]; in parts where the chain knows them."""
        if self.weights[t].any():
            y = y * np.ldexp(1.0, -self.weights[t])
        return self._through(y, t)

    def wide(self, t: int) -> Wide:
        """Step t as one matrix, with an exponent for every entry."""
        found = self._kept.get(t)
        if found is None:
            found = self._wide(t)
            if len(self) * found.mantissa.size < self._MOST_KEPT:
                self._kept[t] = found
        return found

    def _wide(self, t: int) -> Wide:
        if not self.source.beyond:
            return Wide.of(self._through(np.eye(len(self.weights[t])), t))
        step = self.source.wide(t)
        return step if self.live is None else step[np.ix_(self.live[t + 1], self.live[t])]

    def terms(self, t: int) -> list[Array]:
        """Step t as terms, see ``StepSource``, of the states that matter."""
        found = self.source.terms(t)
        return found if self.live is None else [one[np.ix_(self.live[t + 1], self.live[t])] for one in found]

    def balls(self, t: int, bits: int) -> Array:
        """Step t as balls, see ``StepSource``."""
        step = self.source.balls(t, bits)
        return step if self.live is None else step[np.ix_(self.live[t + 1], self.live[t])]

    def nonzero(self, t: int) -> Array:
        """Which entries of step t are not zero."""
        found = self.wide(t).mantissa if self.source.beyond else self[t]
        return np.asarray(np.abs(found) > 0)

    @property
    def wild(self) -> bool:
        """Whether float64 does not hold what becomes of its entries."""
        return self.source.beyond or self.span >= WILD

    def _through(self, y: Array, t: int) -> Array:
        return multiplied(y, self.parts(t), self.source.layout if self.whole(t) else None)

    def parts(self, t: int) -> list[Array]:
        """The step as the parts of which ``multiplied`` makes it up, where all states matter."""
        found = self._parts.get(t)
        if found is None:
            found = self.source.parts(t) if self.whole(t) else [self[t]]
            if len(self) * sum(part.size for part in found) < self._MOST_KEPT:
                self._parts[t] = found
        return found

    def whole(self, t: int) -> bool:
        """Whether all states matter before step t and after it."""
        return self.live is None or len(self.live[t]) == len(self.live[t + 1]) == self.size

    def width(self, t: int, size: int) -> Array:
        """Indices of the live states at time t of a chain of `size` states."""
        return np.arange(size) if self.live is None else self.live[t]


def surveyed(steps: Steps) -> bool:
    """Set the weights without a look at every entry, if the chain says that no row or column is zero."""
    sizes, certain = steps.source.survey()
    # Bounds this far from the ends of float64 are of finite entries.
    if not (certain and sizes.min() > 2.0**-MAX_EXPONENT and sizes.max() < 2.0**MAX_EXPONENT):
        return False
    steps.weights = _all_row_exponents(sizes)
    steps.span = steps.source.span
    return True


def sourced(given: Sequence[Array] | Any) -> StepSource:
    """Where steps come from, of whatever a user gives."""
    if isinstance(given, StepSource):
        return given
    indexed = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    return DenseSteps(given if indexed and getattr(given, "ndim", 1) != 0 else np.atleast_1d(given))


def checked(given: Sequence[Array] | Any) -> tuple[Steps, bool]:
    """All steps looked at once: sizes, finite, weights; and whether any row or column is zero."""
    source = sourced(given)
    if len(source) == 0:
        raise InputError("got a chain of 0 steps, expected at least one Jacobian: shape (T, m, m)")
    steps = Steps(source)
    if surveyed(steps):
        return steps, False
    size = None
    gaps = False
    for t in range(len(source)):
        a = _read(source, t)
        _check(a, t, size)
        size = a.shape[0]
        magnitude = np.abs(a.astype(np.float64, copy=False))
        gaps = gaps or not (magnitude.max(axis=1).all() and magnitude.max(axis=0).all())
        steps.weights.append(row_exponents(magnitude))
        steps.span = max(steps.span, span(magnitude))
    if source.beyond:
        steps.span = source.span
    return steps, gaps


def span(*magnitudes: Array) -> float:
    """Bits from the smallest to the largest of all that is not zero, of absolute values."""
    largest = max((float(a.max(initial=0)) for a in magnitudes), default=0.0)
    smallest = min((float(np.min(a, where=a > 0, initial=np.inf)) for a in magnitudes), default=np.inf)
    return float(np.log2(largest) - np.log2(smallest)) if largest > 0 else 0.0


def _read(source: StepSource, t: int) -> Array:
    """Step t as an array, whatever it is to begin with."""
    try:
        step = source[t]
        if isinstance(step, np.ma.MaskedArray) and step.mask.any():
            raise InputError(f"step {t} has masked entries, expected numbers: fill them")
        return np.asarray(step)
    except InputError:
        raise
    except Exception as error:  # a tensor that requires grad, a list of rows of different length ...
        raise InputError(
            f"step {t} is no array: {type(error).__name__}: {str(error).splitlines()[0]:.100}; expected "
            "numbers (m, m), of a tensor those of tensor.detach().cpu().numpy()"
        ) from error


def _check(a: Array, t: int, size: int | None) -> None:
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] == 0:
        raise InputError(f"step {t} has shape {a.shape}, expected (m, m): give one square Jacobian per step")
    if size is not None and a.shape[0] != size:
        raise InputError(f"step {t} has shape {a.shape}, expected {(size, size)}: give steps of one size")
    if a.dtype.kind not in "fiub":
        raise InputError(f"step {t} has dtype {a.dtype}, expected real numbers: convert it to float64")
    if not np.isfinite(a).all():
        raise InputError(f"step {t} holds NaN or infinity, expected finite entries: look for an overflow")
    if not _held(a):
        raise InputError(
            f"step {t} holds {a.dtype} that float64 would round, expected entries that it holds: convert it "
            "to float64 if the rounded ones are meant"
        )


def _held(a: Array) -> bool:
    """Whether float64 holds every entry as it is."""
    if a.dtype.kind == "f":
        return bool(a.dtype.itemsize <= 8 or (a.astype(np.float64) == a).all())
    if a.dtype.itemsize < 8:
        return True
    large = a[(a > 2**53) | (a < -(2**53))]
    return all(int(float(each)) == each for each in large.tolist())


def reachable(
    steps: Steps, size: int, rows: slice, columns: slice, gaps: bool
) -> tuple[list[Array], list[Array]]:
    """Masks (T + 1 of them) of the states that ``columns`` at time 0 reach, and that reach ``rows`` at T.

    gaps : whether any row or column is zero. Where none is, all states that are reached reach all.
    """
    states = np.arange(size)
    forward, backward = [np.isin(states, states[columns])], [np.isin(states, states[rows])]
    for t in range(len(steps)):
        reached = forward[-1]
        look = gaps or not reached.all()
        forward.append(np.asarray(steps.nonzero(t)[:, reached].any(axis=1)) if look else reached)
    for t in reversed(range(len(steps))):
        reaching = backward[-1]
        look = gaps or not reaching.all()
        backward.append(np.asarray(steps.nonzero(t)[reaching].any(axis=0)) if look else reaching)
    return forward, backward[::-1]


def restricted(steps: Steps, masks: list[Array]) -> Steps:
    """The same chain on the masked states only."""
    part = Steps(steps.source, [np.flatnonzero(mask) for mask in masks], len(masks[0]))
    part.weights = [steps.weights[t] if part.whole(t) else row_exponents(part[t]) for t in range(len(part))]
    part.span = steps.span
    return part


def multiplied(
    y: Array, parts: Sequence[Array], layout: Layout | None = None, out: Array | None = None
) -> Array:
    """y @ A, y (.., r, m), for A in blocks of columns: (m, n), or (m / n, n) diagonals one below the other.

    With a layout, A is (1 + first part) (1 + second part) ... times the blocks on its diagonal, whose parts
    follow. Of many side by side parts are (.., m, n). out : where it is put.
    """
    m = y.shape[-1]
    if out is None:
        columns = m if layout is not None else sum(part.shape[-1] for part in parts)
        out = np.empty((*y.shape[:-1], columns))
    if layout is not None:
        return _in_blocks(y, parts, layout, out)
    start = 0
    for part in parts:
        count, n = part.shape[-2:]
        block = out[..., start : start + n]
        if count == m:
            np.matmul(y, part, out=block)
        else:
            np.multiply(y[..., :n], part[..., :1, :], out=block)
            for k in range(1, count):
                block += y[..., k * n : (k + 1) * n] * part[..., k : k + 1, :]
        start += n
    return out


def _in_blocks(y: Array, parts: Sequence[Array], layout: Layout, out: Array) -> Array:
    added, diagonal = layout
    y, rest = y.copy(), iter(parts)
    for rows, columns in added:
        y[..., columns] += y[..., rows] @ next(rest)
    for own, count in diagonal:
        multiplied(y[..., own], list(islice(rest, count)), out=out[..., own])
    return out


def multiplied_back(x: Array, parts: Sequence[Array], layout: Layout | None = None) -> Array:
    """x @ A^T, x (.., r, m), for A as ``multiplied`` takes it; of many side by side parts are (.., m, n)."""
    if layout is not None:
        return _of_blocks(x, parts, layout)
    out, start = np.zeros(x.shape), 0
    for part in parts:
        n = part.shape[-1]
        read = x[..., start : start + n]
        if part.shape[-2] == x.shape[-1]:
            out += read @ part.swapaxes(-1, -2)
        else:
            for k in range(part.shape[-2]):
                out[..., k * n : (k + 1) * n] += read * part[..., None, k, :]
        start += n
    return out


def _of_blocks(x: Array, parts: Sequence[Array], layout: Layout) -> Array:
    added, diagonal = layout
    out, rest = np.empty_like(x), iter(parts[len(added) :])
    for own, count in diagonal:
        out[..., own] = multiplied_back(x[..., own], list(islice(rest, count)))
    for (rows, columns), part in reversed([*zip(added, parts, strict=False)]):
        out[..., rows] += out[..., columns] @ part.T
    return out
