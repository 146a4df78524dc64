"""The gradient that really flows back from a loss: by lag, by gate, and in the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.cells.notation import named
from gradscope.custom_types import Array
from gradscope.measure.by_unit import by_unit
from gradscope.measure.clipping import Clipping
from gradscope.measure.truncation import Truncation
from gradscope.product_svd.log_scale import median_of_known


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
