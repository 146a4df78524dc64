"""The spectrum of a product of Jacobians: all singular values in log scale, with an error estimate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option
from gradscope.machine import cores, one_blas_thread
from gradscope.product_svd import log_scale
from gradscope.product_svd.arguments import check_asked, window_of
from gradscope.product_svd.block_krylov import TopTriplets, norm_by_lag, top_values
from gradscope.product_svd.error_estimate import EPS, best_run, lags_alone, lost_lags, rounding_of
from gradscope.product_svd.extended_range_run import large, wide_first, wide_lags, wide_run
from gradscope.product_svd.graded_chain import RangeError
from gradscope.product_svd.more_digits import with_more_digits
from gradscope.product_svd.norm_by_lag import LagNorm
from gradscope.product_svd.operator import DenseOperator, Operator, tame
from gradscope.product_svd.outcome import Outcome
from gradscope.product_svd.plain_product import Beside
from gradscope.product_svd.plain_values import PlainValues, few_of_many, first_values, values_of
from gradscope.product_svd.steps import Steps, checked, reachable, restricted

Engine = Literal["host", "compiled", "blocks", "mixed"]

# From this size on, and from so many times the values asked for, blocks took a third of the time or
# less (T = 200).
BLOCK_SIZE = 64
BLOCK_FACTOR = 4
# The same with the norms of some lags: the whole with every lag took a third of that time (m = 256), half
# (m = 512; T = 100).
BLOCK_SIZE_BY_LAG = 1024
# Of so many steps the plain product of all states is formed sooner than blocks have their lags.
FEW_STEPS = 64
# Their estimated error, or all values are computed.
GOOD_TOP = 1e-10


@dataclass(frozen=True)
class Spectrum:
    """Singular values of P = A_T ... A_1, in log10, and its top singular vectors.

    log10_singular_values : (m,) array, descending, -inf for an exactly zero value; (top,) on request.
    exact_zeros : number of exactly zero values among all m: for entries that are rounded themselves
        (entry_error of spectrum) those that the structure makes zero; None where only the top values were
        computed, which cannot tell, or where entries may have counted as 0 that are not.
    log10_error : estimated largest |error| of a finite log10 value.
    log10_norm_error : estimated |error| of the first of them, log10 sigma_1.
    left, right : (m,) arrays, unit vectors with P right = sigma_1 left (zero vectors if P = 0).
    log10_norm_by_lag : (T,) array, log10 sigma_1(A_T ... A_(T-k+1)) for k = 1 ... T, or None; NaN where the
        rounding of the entries leaves nothing of it, or may.
    lags : the k that log10_norm_by_lag is for, where it is not for all of them: (L,) both.
    lost : how many values the rounding of the entries leaves nothing of, or may, or that are too far below
        others to be followed: NaN, before the zeros.
    log10_largest_gain : log10 of the largest sigma_1 over any stretch of the steps, None if not looked for;
        of the top values the largest that was met.
    log10_norm_error_by_lag : (T,) array, estimated |error| of log10_norm_by_lag, NaN at the lags that other
        runs were not compared at; None where no lag but the last has an estimate.
    engine : what multiplied and factored the steps, "host" (this room) or "compiled" (programs on the
        devices), "blocks" (vectors of the top values, there too); "mixed" of parts.
    """

    log10_singular_values: Array
    exact_zeros: int | None
    log10_error: float
    log10_norm_error: float
    left: Array
    right: Array
    log10_norm_by_lag: Array | None
    lags: Array | None = None
    lost: int = 0
    log10_largest_gain: float | None = None
    engine: Engine = "host"
    log10_norm_error_by_lag: Array | None = None

    def first(self, top: int | None) -> Spectrum:
        """The same with as many values as that, or all."""
        return replace(self, log10_singular_values=self.log10_singular_values[:top])

    def _repr_html_(self) -> str:
        from gradscope.notebook import spectrum_html

        return spectrum_html(self)


@one_blas_thread()
def spectrum(
    jacobians: Sequence[Array] | Any,
    top: int | None = None,
    *,
    by_lag: bool = False,
    floor: float = -np.inf,
    entry_error: float = EPS,
    accuracy: str = "full",
    workers: int | None = None,
    window: tuple[slice, slice] | None = None,
    only_first: bool = False,
) -> Spectrum:
    """Singular values of P = jacobians[T-1] @ ... @ jacobians[0].

    jacobians : (T, m, m) array, or a sequence whose [t] gives an (m, m) array.
    top : only that many values, by block Krylov or the plain product where that is faster and as good.
    by_lag : also log10 sigma_1 at every lag, or for the top values at some.
    floor : lags where it is below this, and below the largest, may get an upper bound instead; for
        the top values, the lag where it falls below this is looked for.
    entry_error : relative rounding unit of the entries, which the error estimate then covers;
        at its default (and below) the float64 entries are taken as exact. More where entries span many
        decades, as slopes of saturated units do: they carry the rounding of large pre-activations.
    accuracy : "full", or "fast" for about 1e-6 (relative, of the smallest values): more steps are
        multiplied before they are factored, as many as their condition allows.
    workers : threads, all cores by default; of large chains the run on changed entries has one beside the
        other, more are not used. The result does not depend on them.
    window : rows and columns of the product, (r, c) of them: then all of the above is of that block of it,
        with min(r, c) values, left (r,) and right (c,); and of that block at every lag.
    only_first : the largest value alone, with every lag of ``by_lag``, sooner and as good as among all: by
        the plain product, where its rounding leaves the value its digits.
    Raises InputError for an empty, non-square, complex or non-finite chain, for entries that float64 would
    round, and for what else cannot be meant.

    Method: graded LU chain (the UDT form of Tomas, Chang, Scalettar, Bai 2012, with LU), then
    preconditioned Jacobi (Drmac, Veselic 2008). The error is that of the whole computation
    against others on entries changed by +-entry_error (stochastic arithmetic, Vignes 1993).
    """
    check_asked(top, floor, entry_error, accuracy, workers)
    steps, gaps = checked(jacobians)
    m = len(steps.weights[0])
    entry_error = rounding_of(entry_error, steps.span)
    rows, columns = window_of(window, m)
    count = min(len(range(m)[part]) for part in (rows, columns))
    if top is not None and not 1 <= top <= count:
        raise InputError(
            f"{as_option('top')} is {top}, expected 1 to {count}: ask for no more values than states"
        )
    asked = _Asked(top, by_lag, floor, entry_error, window, only_first, count)
    found = _by_blocks(steps, asked)
    if found is None:
        found = _by_plain_product(steps, asked)
    return _by_factors(steps, gaps, asked, accuracy, workers or cores()) if found is None else found


class _Asked(NamedTuple):
    """What is asked of a chain, as for ``spectrum``; entry_error : of its entries; values : how many."""

    top: int | None
    by_lag: bool
    floor: float
    entry_error: float
    window: tuple[slice, slice] | None
    only_first: bool
    values: int


def _by_blocks(steps: Steps, asked: _Asked) -> Spectrum | None:
    """The top values by block Krylov; None where that is no faster, or not as good."""
    top = asked.top
    if top is None or asked.window is not None or not _worth_blocks(steps, top, asked.by_lag):
        return None
    operator, told = DenseOperator(steps, len(steps.weights[0])), asked.by_lag
    found = top_spectra(operator, top, by_lag=told, floor=asked.floor, entry_error=asked.entry_error)[0]
    good = not np.isneginf(found.log10_singular_values[-1]) and found.log10_error <= GOOD_TOP
    return found if good else None


def _by_plain_product(steps: Steps, asked: _Asked) -> Spectrum | None:
    """The first value, or a few of all, with their lags; None where they may have lost their digits."""
    few = 1 if asked.only_first else asked.top
    if few is None or not asked.by_lag or steps.wild:
        return None
    if not (asked.only_first or few_of_many(asked.values, few)):
        return None
    floor = asked.floor if asked.only_first else -np.inf
    found = values_of(steps, few, asked.entry_error, floor, asked.window)
    return None if found is None else _of_plain(found)


def _by_factors(whole: Steps, gaps: bool, asked: _Asked, accuracy: str, workers: int) -> Spectrum:
    """All values, from the factors of the product."""
    m = len(whole.weights[0])
    rows, columns = window_of(asked.window, m)
    lag_norm = LagNorm(asked.floor if asked.top is None else -np.inf, columns) if asked.by_lag else None
    steps, lagged = whole, None
    # Where every entry has an exponent zeros stay zeros: no state need be left out.
    if asked.window is not None or (gaps and not whole.wild):
        steps, lag_norm, lagged = _that_count(whole, gaps, asked.window, lag_norm)
    if asked.only_first and lag_norm is not None and steps.wild:
        found = wide_first(steps, asked.entry_error, lag_norm)
    else:
        found = _run(steps, asked.entry_error, lag_norm, accuracy, workers)
    found = with_more_digits(found, steps, asked.entry_error, lag_norm, only_first=asked.only_first)
    left, right = np.zeros(m), np.zeros(m)
    left[steps.width(len(steps), m)] = found.left
    right[steps.width(0, m)] = found.right
    lags = (found.lags if lagged is None else lagged) if asked.by_lag else None
    every = assembled(found, lags, asked.values, left[rows], right[columns], asked.top)
    return _without_others(every) if asked.only_first else every


def _that_count(
    whole: Steps, gaps: bool, window: tuple[slice, slice] | None, lag_norm: LagNorm | None
) -> tuple[Steps, LagNorm | None, Array | None]:
    """Steps of the states that lie on a way through all of them.

    Second how lags are to be taken along them, or third, where more states count at these, the lags.
    """
    m = len(whole.weights[0])
    rows, columns = window_of(window, m)
    forward, backward = reachable(whole, m, rows, columns, gaps)
    kept = [f & b for f, b in zip(forward, backward, strict=True)]
    steps = restricted(whole, kept)
    if lag_norm is None:
        return steps, None, None
    # A state that time 0 does not reach still counts at the shorter lags; and columns are counted among all
    # states.
    seen = backward if window is None else [*[np.ones(m, bool)] * len(whole), backward[-1]]
    if all(map(np.array_equal, kept[1:], seen[1:])):  # the last lag is the first value
        return steps, LagNorm(lag_norm.floor, columns, range(1, len(whole))), None
    return steps, None, _lags_alone(restricted(whole, seen), lag_norm)


def _run(steps: Steps, entry_error: float, lag_norm: LagNorm | None, accuracy: str, workers: int) -> Outcome:
    """The best run over the chain, with an exponent for every entry where float64 cannot hold them.

    Where a small chain has lost values that is tried too: rows of entries far apart hide less there.
    """
    run: Outcome | None = None
    if not steps.wild:
        with contextlib.suppress(RangeError):
            run = best_run(steps, entry_error, lag_norm and lag_norm.anew(), accuracy, workers)
    if run is not None and (not run.lost or large(steps)):
        return run
    found = wide_run(steps, entry_error, lag_norm)
    return found if run is None else min(run, found, key=lambda one: (one.lost, one.error))


def _lags_alone(steps: Steps, lag_norm: LagNorm) -> Array:
    """(T,) log10 norms of the products of the last steps, without their values."""
    if not steps.wild:
        with contextlib.suppress(RangeError):
            return lags_alone(steps, lag_norm.anew())
    return wide_lags(steps, lag_norm)


def _worth_blocks(steps: Steps, top: int, by_lag: bool) -> bool:
    """Whether a few passes with a block are faster than the whole, in general, and right.

    A QR leaves noise of 1e-16 beside its largest entries, where saturated gates let less through.
    """
    large = len(steps.weights[0]) >= max(BLOCK_SIZE_BY_LAG if by_lag else BLOCK_SIZE, BLOCK_FACTOR * top)
    few = by_lag and len(steps) <= FEW_STEPS  # of which the plain product is sooner
    return large and not few and not steps.wild and tame(steps)


def top_spectra(
    operator: Operator,
    top: int,
    *,
    by_lag: bool = False,
    floor: float = -np.inf,
    entry_error: float = EPS,
) -> list[Spectrum]:
    """The spectrum's top values of an operator's product, one for each of its sequences.

    Values that are zero, or were reduced to its rounding by some step, are -inf. Otherwise as spectrum.
    """
    found = top_values(operator, top, entry_error=entry_error)
    lags, norms = norm_by_lag(operator, found, floor) if by_lag else (None, [None] * len(found))
    return [_top_spectrum(one, top, of_lag, lags) for one, of_lag in zip(found, norms, strict=True)]


def _top_spectrum(found: TopTriplets, top: int, norms: Array | None, lags: Array | None) -> Spectrum:
    log10 = np.full(top, -np.inf)
    log10[: len(found.log10)] = found.log10[:top]
    some = float(len(found.log10) > 0)
    # What one of two passes alone has found, no other speaks for.
    errors = np.full(min(top, len(found.log10)), np.inf)
    errors[: len(found.error)] = found.error[:top]
    return Spectrum(
        log10,
        exact_zeros=None,
        log10_error=float(errors.max(initial=0)),
        log10_norm_error=float(errors[0]) if some else 0.0,
        left=found.left[:, 0] * some,
        right=found.right[:, 0] * some,
        log10_norm_by_lag=norms,
        lags=lags,
        log10_largest_gain=found.largest,
    )


def assembled(
    found: Outcome, lags: Array | None, count: int, left: Array, right: Array, top: int | None
) -> Spectrum:
    """The spectrum of an outcome: ``count`` values, its vectors among all states."""
    values = found.log10.astype(np.float64)
    log10 = np.full(count, -np.inf)
    log10[: len(values)] = values
    log10[len(values) : len(values) + found.lost] = np.nan
    errors = None
    if lags is not None:
        lags[-1] = log10[0]
        if len(found.lag_errors) == len(lags):
            last = found.norm_error if len(values) else found.lag_errors[-1]
            errors = np.append(found.lag_errors[:-1], last)
            lags[lost_lags(errors)] = np.nan
    return Spectrum(
        log10[:top],
        exact_zeros=count - len(values) - found.lost,
        log10_error=found.error,
        log10_norm_error=found.norm_error,
        left=left,
        right=right,
        log10_norm_by_lag=lags,
        lost=found.lost,
        log10_norm_error_by_lag=errors,
    )


def plain_spectra(
    steps: Iterable[Beside], length: int, shape: tuple[int, int], entry_error: float, floor: float = -np.inf
) -> list[Spectrum | None]:
    """The first value of P chains side by side, as ``first_values`` is asked for it."""
    found = first_values(steps, length, shape, entry_error, floor)
    return [None if one is None else _of_plain(one) for one in found]


def _of_plain(found: PlainValues) -> Spectrum:
    return Spectrum(
        found.log10,
        exact_zeros=None,
        log10_error=float(found.error.max()),
        log10_norm_error=float(found.error[0]),
        left=found.left,
        right=found.right,
        log10_norm_by_lag=found.lags,
    )


def _without_others(found: Spectrum) -> Spectrum:
    """The same of its first value alone; how many are zero is another question then."""
    value, error = found.log10_singular_values[:1], found.log10_norm_error
    lost = int(np.isnan(value[0]))
    return replace(found, log10_singular_values=value, exact_zeros=None, log10_error=error, lost=lost)


def diagonal_spectrum(diagonals: Any, *, by_lag: bool = False, entry_error: float = EPS) -> Spectrum:
    """Spectrum of the chain of diagonal matrices diag(diagonals[t]): products, no factorisation.

    diagonals : (T, n) array. Raises InputError as spectrum does.
    """
    d = np.asarray(diagonals)
    if d.ndim != 2 or 0 in d.shape or d.dtype.kind not in "fiub" or not np.isfinite(d).all():
        raise InputError(
            f"got diagonals of shape {d.shape} and dtype {d.dtype}, expected (T, n) finite real numbers"
        )
    mantissa, exponent = np.ones(d.shape[1]), np.zeros(d.shape[1], np.int64)
    lags = []
    for row in map(np.abs, d[::-1]):  # one by one: of a million steps there should be no copy
        mantissa, carried = np.frexp(mantissa * np.frexp(row)[0])
        exponent = exponent + carried + np.frexp(row)[1]
        if by_lag:
            lags.append(float(log_scale.log10(mantissa, exponent).max()))
    logs = log_scale.log10(mantissa, exponent)
    order = np.argsort(-logs, kind="stable")
    vector = np.zeros(d.shape[1])
    vector[order[0]] = float(np.isfinite(logs[order[0]]))
    sign = np.prod(np.sign(d[:, order[0]]))
    values = logs[order].astype(np.float64)
    finite = values[np.isfinite(values)]
    error = 0.0
    if len(finite):
        # Roundings add up like a random walk.
        error = 2 * np.sqrt(len(d)) * (EPS + entry_error) / np.log(10)
        error += float(np.spacing(np.abs(finite).max()))
    return Spectrum(
        values,
        exact_zeros=len(values) - len(finite),
        log10_error=float(error),
        log10_norm_error=float(error),
        left=vector * sign,
        right=vector,
        log10_norm_by_lag=np.array(lags) if by_lag else None,
    )
