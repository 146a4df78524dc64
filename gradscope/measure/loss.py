"""The gradient that really flows back from a loss: by lag, by gate, and in the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gradscope.cells.notation import named
from gradscope.custom_types import Array
from gradscope.errors import listed
from gradscope.linearize.system import cast
from gradscope.linearize.trajectory import Spread
from gradscope.measure.adjoints import DRAWS, ROUNDINGS, Adjoints, Followed, Total
from gradscope.measure.by_unit import by_unit
from gradscope.measure.clipping import ClippedGradient, Clipping, clipped, clipping_of
from gradscope.measure.lag_sums import Losses
from gradscope.measure.progress import Progress
from gradscope.measure.truncation import Truncation, truncation
from gradscope.problem.problem import Problem
from gradscope.product_svd.error_estimate import SAFETY
from gradscope.product_svd.log_scale import decades, median_of_known


@dataclass(frozen=True)
class LossGradient:
    """What one loss L sends back through a recurrent layer, of B sequences of T steps.

    at : "last" where the loss is at the last step, "every" where it is a sum over the steps.
    log10_norm : (B, T + 1), log10 |dL/ds_(T-k)| at lag k = 0..T, through the paths that were kept; NaN where
        a sequence has fewer steps T than the longest.
    deltas : {"dz": (B, T, n)}, dL/d(pre-activation of that gate) at every step t = 1..T (Greff et al.,
        arXiv 1503.04069, appendix A.2), which is the derivative by its bias at that step alone; 0 or inf
        where float64 ends. log10_deltas : {"dz": (B, T)}, log10 of their norms by lag k = 1..T, that is at
        step T - k + 1; they do not end there, and are NaN where rounding may leave nothing of them. 0 and NaN
        where a sequence has fewer steps.
    log10_gradients : {parameter: log10 of the Frobenius norm of dL/d(parameter)}, of all steps and sequences.
    shares : {matrix: (T,)}, the share of lag k = 1..T in dL/dR_g or dL/dW_g. BPTT sums G_p = sum_k G_(k,p)
        over the lags from a loss back to the use of p (1 at the step of the loss itself); the share of (k, p)
        is <G_(k,p), G_p> / sum_q |G_q|^2, with q all recurrent matrices, or all input weights: it sums to 1
        over lags and matrices. Negative where a lag works against the whole; NaN if the whole is zero.
    clip, tbptt : what gradient clipping and truncated BPTT make of it, None where that is not asked for.
    unmeasured : what of it was not measured, which is NaN, and why; None where all was.
    log10_norm_error, log10_gradient_errors, log10_delta_errors : estimated |error| of these, in decades, from
        runs along the same states in which all that a step reads is changed by roundings; delta_errors : of
        every entry of ``deltas``, in its own unit. None of results that are older.
    """

    at: str
    log10_norm: Array
    deltas: Mapping[str, Array]
    log10_deltas: Mapping[str, Array]
    log10_gradients: Mapping[str, float]
    shares: Mapping[str, Array]
    clip: Clipping | None = None
    tbptt: Truncation | None = None
    unmeasured: str | None = None
    log10_norm_error: Array | None = None
    log10_gradient_errors: Mapping[str, float] | None = None
    log10_delta_errors: Mapping[str, Array] | None = None
    delta_errors: Mapping[str, Array] | None = None

    @property
    def kinds(self) -> dict[str, list[str]]:
        """The matrices whose shares sum to 1 together: {"R": recurrent, "W": input weights}."""
        kinds = {kind: named(self.shares, kind) for kind in ("R", "W")}
        return {kind: names for kind, names in kinds.items() if names}

    def share(self, matrix: str) -> float:
        """|G_p|^2 / sum_q |G_q|^2, the share of one matrix, all lags together."""
        return float(self.shares[matrix].sum())

    def lag_within(self, rest: float, matrices: Sequence[str]) -> int | None:
        """The lag from which on the sum over lags is within this part of the whole: 0.5 at half of it.

        What BPTT truncated there gives of the gradients of these matrices, along their direction. None
        if they are zero.
        """
        reached = np.cumsum(np.sum([self.shares[name] for name in matrices], axis=0))
        if not reached[-1] > 0:
            return None
        far = np.flatnonzero(np.abs(reached[-1] - reached) > rest * reached[-1])
        return int(far[-1]) + 2 if len(far) else 1

    def to_dict(self, lags: Array) -> dict[str, Any]:
        """The part ``loss`` of the JSON object, at these lags; what is between them is in the next one."""
        at = [0, *lags.tolist()]
        deltas = {name: median_of_known(norms)[lags - 1] for name, norms in self.log10_deltas.items()}
        starts = [0, *lags[:-1].tolist()]
        known = self.log10_norm_error
        errors = {} if known is None else {"log10_error": known[:, at]}
        shares = {name: np.add.reduceat(share, starts) for name, share in self.shares.items()}
        of_deltas = {
            name: np.max(each, axis=0)[lags - 1] for name, each in (self.log10_delta_errors or {}).items()
        }
        return {
            "at": self.at,
            "profile": {"lag": at, "log10_norm": self.log10_norm[:, at]} | errors,
            "lag": lags.tolist(),
            "deltas": deltas,
            **({"deltas_error": of_deltas} if of_deltas else {}),
            **({"units": by_unit(self.deltas, self.delta_errors)} if self.deltas else {}),
            "share": shares,
            "reach": {kind: self._reach(names) for kind, names in self.kinds.items()},
            "gradients": [self._gradient(name, norm) for name, norm in self.log10_gradients.items()],
            **({} if self.clip is None else {"clip": self.clip.to_dict(lags)}),
            **({} if self.tbptt is None else {"tbptt": self.tbptt.to_dict(lags)}),
            **({} if self.unmeasured is None else {"unmeasured": self.unmeasured}),
        }

    def _gradient(self, name: str, norm: float) -> dict[str, Any]:
        errors = self.log10_gradient_errors
        more: dict[str, Any] = {} if errors is None else {"log10_error": errors[name]}
        if name in self.shares:
            more |= {"share": self.share(name), "reach": self._reach([name])}
        return {"name": name, "log10_norm": norm, **more}

    def _reach(self, matrices: Sequence[str]) -> dict[str, int | None]:
        return {"half": self.lag_within(0.5, matrices), "most": self.lag_within(0.01, matrices)}


def loss_gradient(
    problem: Problem, near: bool, device: jax.Device | None = None, progress: Progress | None = None
) -> LossGradient:
    """The gradient of the loss that a problem has.

    near : whether states come near levels (``course``).
    progress : called with (sequences done, sequences in all), the first with a fraction. A loss at every
    step takes O(T^2) time, as each of its T parts is followed back on its own.
    """
    assert problem.adjoint is not None
    device = device or jax.local_devices()[0]
    system = problem.system
    with system.running():
        parameters = Spread((device,)).replicate(cast(system.parameters, system.dtype))
        parts = [system.part([b], system.length(b)) for b in range(system.batch)]
        sequences = [
            Adjoints(one, problem.kept, adjoint[: one.steps], device, parameters, near)
            for one, adjoint in zip(parts, problem.adjoint, strict=True)
        ]
        losses = None
        if problem.clip or problem.tbptt:
            losses = Losses(system, problem.kept, problem.adjoint, device, near)
        passes = losses.work * (1 + 2 * (problem.tbptt is not None)) if losses else 0
        done = _meter(sum(sequence.work for sequence in sequences) + passes, system.batch, progress)
        found, total, each = _followed(problem, sequences, done)
        again = [_followed(problem, sequences, done, draw) for draw in range(1, DRAWS + 1)]
        shares = _shares(total, sequences, system.steps, done)
        clip, tbptt = _trained(problem, losses, total, each, done) if losses else (None, None)
    runs = [each for each, *_ in again]
    norms, deltas, log10_deltas = _norms(found), _deltas(found), _log10_deltas(found)
    return _without_noise(
        LossGradient(
            at="last" if problem.adjoint.shape[1] == 1 else "every",
            log10_norm=norms,
            deltas=deltas,
            log10_deltas=log10_deltas,
            log10_gradients={
                name: float(decades(_norm(part), total.exponent)) for name, part in total.arrays.items()
            },
            shares=shares,
            clip=clip,
            tbptt=tbptt,
            log10_norm_error=_spread(norms, [_norms(run) for run in runs], system.eps),
            log10_delta_errors={
                gate: _spread(each, [_log10_deltas(run)[gate] for run in runs], system.eps)
                for gate, each in log10_deltas.items()
            },
            delta_errors={
                gate: _off(each, [_deltas(run)[gate] for run in runs], system.eps)
                for gate, each in deltas.items()
            },
            log10_gradient_errors={
                name: gradient_error(total, [other for _, other, _ in again], [name], system.eps)
                for name in total.arrays
            },
        )
    )


def _without_noise(loss: LossGradient) -> LossGradient:
    """The same with NaN for what rounding leaves nothing of."""
    assert loss.log10_norm_error is not None
    assert loss.log10_gradient_errors is not None
    assert loss.log10_delta_errors is not None
    lost = (loss.log10_norm_error > LOST) & np.isfinite(loss.log10_norm)
    noise = [name for name, error in loss.log10_gradient_errors.items() if error == math.inf]
    drowned = {
        gate: np.isfinite(loss.log10_deltas[gate]) & (error > LOST)
        for gate, error in loss.log10_delta_errors.items()
    }
    gates = [gate for gate, where in drowned.items() if where.any()]
    if not lost.any() and not noise and not gates:
        return loss
    at_lags = f"it at some lags from {int(np.argmax(lost.any(axis=0)))} on" if lost.any() else ""
    of_weights = f"its gradient by {listed(noise)}" if noise else ""
    of_steps = f"its {listed(gates)} at some steps" if gates else ""
    what = " and ".join(filter(None, (at_lags, of_weights, of_steps)))
    return replace(
        loss,
        log10_norm=np.where(lost, np.nan, loss.log10_norm),
        log10_deltas={
            gate: np.where(where, np.nan, loss.log10_deltas[gate]) for gate, where in drowned.items()
        },
        log10_gradients={**loss.log10_gradients, **dict.fromkeys(noise, math.nan)},
        unmeasured=f"rounding leaves no digit of {what}",
    )


def _norms(found: Sequence[Followed]) -> Array:
    """(B, T + 1) by lag."""
    return _together([one.log10_norm[::-1] for one in found], np.nan)


def _deltas(found: Sequence[Followed]) -> dict[str, Array]:
    """{gate: (B, T, n)} by step."""
    return {gate: _together([one.deltas[gate] for one in found], 0.0) for gate in found[0].deltas}


def _log10_deltas(found: Sequence[Followed]) -> dict[str, Array]:
    """{gate: (B, T)} by lag."""
    return {
        gate: _together([one.log10_deltas[gate][::-1] for one in found], np.nan) for gate in found[0].deltas
    }


def _off(deltas: Array, again: Sequence[Array], eps: float) -> Array:
    """Estimated error of deltas, from those of other runs."""
    with np.errstate(invalid="ignore"):  # beyond float64
        spread = SAFETY * np.max([np.abs(deltas - other) for other in again], axis=0)
    return np.asarray(np.nan_to_num(spread, nan=np.inf, posinf=np.inf) + ROUNDINGS * eps * np.abs(deltas))


def _spread(norms: Array, again: Sequence[Array], eps: float) -> Array:
    """Estimated error of log10 norms, from those of other runs."""
    with np.errstate(invalid="ignore"):  # of zeros
        spread = SAFETY * np.max([np.abs(norms - other) for other in again], axis=0)
    least = ROUNDINGS * eps * (1 + np.abs(norms))
    return np.where(
        np.isneginf(norms), 0.0, np.nan_to_num(spread, posinf=np.inf) + np.nan_to_num(least, posinf=0.0)
    )


def gradient_error(whole: Total, again: Sequence[Total], names: Sequence[str], eps: float) -> float:
    """Estimated error, in decades, of log10 of the norm of a gradient by some parameters together.

    What other runs differ by may be all there is: infinite.
    """
    size = _norm(np.concatenate([whole.arrays[name].ravel() for name in names]))
    parts = [[whole.minus(other, name).ravel() for name in names] for other in again]
    off = max(_norm(np.concatenate(part)) for part in parts)
    if not size:
        return math.inf if off else 0.0
    relative = SAFETY * off / size + ROUNDINGS * eps
    return -math.log10(1 - relative) if relative < 1 else math.inf


# Decades: a norm known no better is lost.
LOST = 1.0
# Part of the exponents of a dtype by which a gradient may shrink in a step, for it to have digits then.
HELD = 0.94


def held_by(loss: LossGradient, dtype: str) -> LossGradient:
    """The same with NaN where it may hang on slopes that are not 0, and that the dtype takes as that.

    It is followed back in the dtype: what is below the largest of its norms by all that the dtype holds may
    have come through such slopes, and so may sums over the steps that are no larger than that.
    """
    tiny = float(np.finfo(dtype).tiny)
    least = HELD * math.log10(tiny)
    norms = loss.log10_norm
    with np.errstate(invalid="ignore"):
        fell = norms[:, 1:] - np.maximum.accumulate(norms, axis=1)[:, :-1] < least
    ended = np.maximum.accumulate(fell, axis=1) & ~np.isnan(norms[:, 1:])
    gradients = {
        name: math.nan if norm < np.nanmax(norms) + least else norm
        for name, norm in loss.log10_gradients.items()
    }
    small = [
        name
        for name, norm in gradients.items()
        if math.isnan(norm) and not math.isnan(loss.log10_gradients[name])
    ]
    with np.errstate(invalid="ignore"):
        deltas = {
            name: np.where(ended | (each < norms[:, :-1] + least), np.nan, each)
            for name, each in loss.log10_deltas.items()
        }
    hidden = [
        name
        for name, each in deltas.items()
        if np.isnan(each).sum() > np.isnan(loss.log10_deltas[name]).sum()
    ]
    if not ended.any() and not small and not hidden:
        return loss
    from_lag = f"from lag {1 + int(np.argmax(ended.any(axis=0)))} on it hangs" if ended.any() else ""
    of_weights = f"its gradient by {listed(small)} hangs" if small else ""
    of_steps = f"at some steps its {listed(hidden)} hangs" if hidden and not ended.any() else ""
    what = " and ".join(filter(None, (from_lag, of_weights, of_steps)))
    return replace(
        loss,
        log10_norm=np.concatenate([norms[:, :1], np.where(ended, np.nan, norms[:, 1:])], axis=1),
        log10_deltas=deltas,
        log10_gradients=gradients,
        clip=None if small else loss.clip,
        tbptt=None if small else loss.tbptt,
        unmeasured="; ".join(
            filter(None, (loss.unmeasured, f"{what} on slopes below {tiny:.0e}, which {dtype} takes as 0"))
        ),
    )


def _followed(
    problem: Problem, sequences: Sequence[Adjoints], done: Callable[[int], None], draw: int = 0
) -> tuple[list[Followed], Total, list[ClippedGradient]]:
    """Every sequence followed back, the gradient of all together, and of each what clipping does to it.

    draw : see ``Adjoints.back``; then without clipping.
    """
    total, found, each = Total(problem.system.parameters), [], []
    for sequence in sequences:
        own = Total(problem.system.parameters)
        found.append(sequence.back(own, done, draw))
        total.add(own.arrays, own.exponent)
        if problem.clip and not draw:
            each.append(clipped(own, problem.clip, problem.twice))
    return found, total, each


def _trained(
    problem: Problem,
    losses: Losses,
    total: Total,
    each: Sequence[ClippedGradient],
    done: Callable[[int], None],
) -> tuple[Clipping | None, Truncation | None]:
    """What clipping and truncation make of the gradient, as far as they are asked for."""
    batch = clipped(total, problem.clip, problem.twice) if problem.clip else None
    sums = losses.sums(total, batch.weights if batch else None, done=done)
    clip = (
        clipping_of(problem.clip, each, batch, sums, problem.system.eps) if problem.clip and batch else None
    )
    if problem.tbptt is None:
        return clip, None
    chunked = losses.sums(total, limits=losses.at % problem.tbptt + 1, done=done)
    again = losses.sums(total, done=done, draw=1)
    return clip, truncation(problem.tbptt, sums, chunked, again)


def _shares(
    total: Total, sequences: Sequence[Adjoints], steps: int, done: Callable[[int], None]
) -> dict[str, Array]:
    """{matrix: (T,)}, see LossGradient: <G_(k,p), G_p> is the loss's part by that lag along G_p."""
    sizes: dict[str, float] = {}
    for kind in ("R", "W"):
        names = named(total.arrays, kind)
        size = _norm(np.concatenate([total.arrays[name].ravel() for name in names])) if names else 0.0
        sizes |= dict.fromkeys(names, size)
    directions = {name: total.arrays[name] / size for name, size in sizes.items() if size}
    shares = {name: np.full(steps, np.nan) for name in sizes}
    if directions:
        each = [one.along(directions, total.exponent, done) for one in sequences]
        parts = _together(each, 0.0).sum(axis=0)
        shares |= {name: parts[:, p] / sizes[name] for p, name in enumerate(sorted(directions))}
    return shares


def _together(each: Sequence[Array], fill: float) -> Array:
    """One array of all sequences, the shorter ones filled up at their end."""
    found = np.full((len(each), max(map(len, each)), *each[0].shape[1:]), fill)
    for row, values in zip(found, each, strict=True):
        row[: len(values)] = values
    return found


def _norm(array: Array) -> float:
    """Frobenius norm; squares may not fit where the entries do."""
    largest = float(np.abs(array).max())
    return largest * float(np.linalg.norm(array / largest)) if largest else 0.0


def _meter(work: int, count: int, progress: Progress | None) -> Callable[[int], None]:
    """Progress in sequences, from steps gone through."""
    gone = 0

    def done(steps: int) -> None:
        nonlocal gone
        gone += steps
        if progress:
            progress(count * gone / work, count)

    return done
