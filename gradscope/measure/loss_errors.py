"""What is known of a loss's gradient: errors from runs that are compared, and what of it is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import listed
from gradscope.measure.adjoints import ROUNDINGS, Total
from gradscope.measure.loss import LossGradient
from gradscope.product_svd.error_estimate import LOST, SAFETY

# Part of the exponents of a dtype by which a gradient may shrink in a step, for it to have digits then.
HELD = 0.94


def error_of_deltas(deltas: Array, again: Sequence[Array], eps: float) -> Array:
    """Estimated error of deltas, in their unit, from those of other runs."""
    with np.errstate(invalid="ignore"):  # beyond float64
        spread = SAFETY * np.max([np.abs(deltas - other) for other in again], axis=0)
    return np.asarray(np.nan_to_num(spread, nan=np.inf, posinf=np.inf) + ROUNDINGS * eps * np.abs(deltas))


def error_of_norms(norms: Array, again: Sequence[Array], eps: float) -> Array:
    """Estimated error of log10 norms, in decades, from those of other runs."""
    with np.errstate(invalid="ignore"):  # of zeros
        spread = SAFETY * np.max([np.abs(norms - other) for other in again], axis=0)
    least = ROUNDINGS * eps * (1 + np.abs(norms))
    return np.where(
        np.isneginf(norms), 0.0, np.nan_to_num(spread, posinf=np.inf) + np.nan_to_num(least, posinf=0.0)
    )


def error_of_gradient(whole: Total, again: Sequence[Total], name: str, eps: float) -> float:
    """Estimated error, in decades, of log10 of the norm of a gradient by a parameter.

    What other runs differ by may be all there is: infinite.
    """
    size = frobenius(whole.arrays[name])
    off = max(frobenius(whole.minus(other, name)) for other in again)
    if not size:
        return math.inf if off else 0.0
    relative = SAFETY * off / size + ROUNDINGS * eps
    return -math.log10(1 - relative) if relative < 1 else math.inf


def frobenius(array: Array) -> float:
    """Frobenius norm; squares may not fit where the entries do."""
    largest = float(np.abs(array).max())
    return largest * float(np.linalg.norm(array / largest)) if largest else 0.0


@dataclass(frozen=True)
class _Lost:
    """What of a gradient is not known.

    norms : (B, T + 1), by lag; gradients : by these parameters; deltas : {gate: (B, T)}, by lag.
    """

    norms: Array
    gradients: Sequence[str]
    deltas: Mapping[str, Array]

    def named(self, loss: LossGradient, of_norms: str, of_gradients: str, of_deltas: str) -> str:
        """In words, of those that were known; each has a place for the first lag, parameters or gates."""
        new = {gate: where & ~np.isnan(loss.log10_deltas[gate]) for gate, where in self.deltas.items()}
        gates = [gate for gate, where in new.items() if where.any()]
        said = [
            of_norms.format(int(np.argmax(self.norms.any(axis=0)))) if self.norms.any() else "",
            of_gradients.format(listed(self.gradients)) if self.gradients else "",
            of_deltas.format(listed(gates)) if gates else "",
        ]
        return " and ".join(filter(None, said))

    def out_of(self, loss: LossGradient, unmeasured: str) -> LossGradient:
        """The gradient with NaN in its place, and why."""
        return replace(
            loss,
            log10_norm=np.where(self.norms, np.nan, loss.log10_norm),
            log10_deltas={
                gate: np.where(where, np.nan, loss.log10_deltas[gate]) for gate, where in self.deltas.items()
            },
            log10_gradients={**loss.log10_gradients, **dict.fromkeys(self.gradients, math.nan)},
            unmeasured="; ".join(filter(None, (loss.unmeasured, unmeasured))),
        )


def without_noise(loss: LossGradient) -> LossGradient:
    """The same with NaN for what rounding leaves nothing of."""
    assert loss.log10_norm_error is not None
    assert loss.log10_gradient_errors is not None
    assert loss.log10_delta_errors is not None
    lost = _Lost(
        (loss.log10_norm_error > LOST) & np.isfinite(loss.log10_norm),
        [name for name, error in loss.log10_gradient_errors.items() if error == math.inf],
        {
            gate: np.isfinite(loss.log10_deltas[gate]) & (error > LOST)
            for gate, error in loss.log10_delta_errors.items()
        },
    )
    what = lost.named(loss, "it at some lags from {} on", "its gradient by {}", "its {} at some steps")
    return lost.out_of(loss, f"rounding leaves no digit of {what}") if what else loss


def held_by(loss: LossGradient, dtype: str) -> LossGradient:
    """The same with NaN where it may hang on slopes that are not 0, and that the dtype takes as that.

    It is followed back in the dtype: what is below the largest of its norms by all that the dtype holds may
    have come through such slopes, and so may sums over the steps that are no larger than that.
    """
    tiny, norms = float(np.finfo(dtype).tiny), loss.log10_norm
    least = HELD * math.log10(tiny)
    small = np.nanmax(norms) + least
    with np.errstate(invalid="ignore"):
        fell = norms[:, 1:] - np.maximum.accumulate(norms, axis=1)[:, :-1] < least
        ended = np.maximum.accumulate(fell, axis=1) & ~np.isnan(norms[:, 1:])
        lost = _Lost(
            np.pad(ended, ((0, 0), (1, 0))),
            [name for name, norm in loss.log10_gradients.items() if norm < small],
            {gate: ended | (each < norms[:, :-1] + least) for gate, each in loss.log10_deltas.items()},
        )
    of_deltas = "" if ended.any() else "at some steps its {} hangs"
    what = lost.named(loss, "from lag {} on it hangs", "its gradient by {} hangs", of_deltas)
    if not what:
        return loss
    if lost.gradients:
        loss = replace(loss, clip=None, tbptt=None)
    return lost.out_of(loss, f"{what} on slopes below {tiny:.0e}, which {dtype} takes as 0")
