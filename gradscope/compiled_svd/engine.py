"""Spectra of chains by compiled programs, each with its error; None where the host engine is surer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax

from gradscope.compiled_svd.asked import ArraySource, Asked, Pass, shape_of
from gradscope.compiled_svd.passes import gone_through
from gradscope.machine import one_blas_thread
from gradscope.product_svd.error_estimate import (
    EPS,
    RESET_SIZE,
    compare,
    draws,
    good_enough,
    rounding_of,
)
from gradscope.product_svd.outcome import Outcome
from gradscope.product_svd.spectrum import Spectrum, assembled
from gradscope.product_svd.steps import StepSource, checked


@one_blas_thread()  # the finish of every pass has a core
def compiled_spectra(
    chains: Sequence[ArraySource],
    devices: Sequence[jax.Device],
    entry_error: float,
    accuracy: str = "full",
    report: Callable[[], None] = lambda: None,
    *,
    by_lag: bool = True,
) -> list[Spectrum | None]:
    """Every singular value of every chain, by_lag with its norm at every lag, as product_svd.spectrum does.

    None for a chain that the program is in doubt about: rows, columns or directions that may be zero, numbers
    that do not fit side by side, runs that do not agree. report : called when a chain was gone through.
    """
    asked = [_asked(chain, entry_error) for chain in chains]
    some = [one for one in asked if one is not None]
    found = _compared(some, devices, accuracy, False, by_lag, report)
    # As best_run of the host: with resets or without, whichever agrees better with itself.
    again = [one for one, outcome in found.items() if not outcome.error <= _enough(one)]
    for one, other in _compared(again, devices, accuracy, True, False, lambda: None).items():
        if other.error < found[one].error:
            other.lags = found[one].lags
            found[one] = other
    return [None if one is None or one not in found else _spectrum(one, found[one], by_lag) for one in asked]


def _asked(chain: ArraySource, entry_error: float) -> Asked | None:
    """The chain with what is seen of it, if a program takes it."""
    shape = shape_of(chain)
    if shape is None or not isinstance(chain, StepSource) or chain.window is not None:
        return None
    steps, gaps = checked(chain)
    if gaps or steps.wild:
        return None
    return Asked(chain, steps, shape, rounding_of(entry_error, steps.span))


def _enough(asked: Asked) -> float:
    return good_enough(asked.shape.size, len(asked.steps), asked.entry_error)


def _compared(
    asked: Sequence[Asked],
    devices: Sequence[jax.Device],
    accuracy: str,
    other_way: bool,
    by_lag: bool,
    report: Callable[[], None],
) -> dict[Asked, Outcome]:
    """The outcome of every chain that the program is sure of, with its error from runs on changed entries."""
    passes = [
        Pass(one, draw, (one.shape.size >= RESET_SIZE) != other_way, by_lag and draw is None)
        for one in asked
        for draw in (None, *range(draws(one.shape.size)))
    ]
    outcomes = gone_through(passes, devices, accuracy, report)
    found = {}
    for one in asked:
        first, *others = (outcome for each, outcome in outcomes.items() if each.asked is one)
        if first is not None and not first.suspect:
            compare(first, others, one.entry_error)
            found[one] = first
    return found


def _spectrum(asked: Asked, found: Outcome, by_lag: bool) -> Spectrum | None:
    """What was found, but for entries that are exact and deserve more, see error_estimate."""
    if not found.error < float("inf") or (asked.entry_error <= EPS and found.error > _enough(asked)):
        return None
    whole = assembled(found, found.lags if by_lag else None, asked.shape.size, found.left, found.right, None)
    return replace(whole, engine="compiled")
