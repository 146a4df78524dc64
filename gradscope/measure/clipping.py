"""What gradient clipping does to the gradient of a loss, as each library clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.cells.notation import is_any_bias, is_input_weight, is_recurrent
from gradscope.custom_types import Array
from gradscope.measure.adjoints import ROUNDINGS, Total
from gradscope.measure.lag_sums import ALL, LagSums
from gradscope.problem.clip import Clip
from gradscope.product_svd.log_scale import decades

# Of the sequences, so many are left as they are at the threshold that is suggested.
_LEFT_ALONE = 90


@dataclass(frozen=True)
class ClippedGradient:
    """One gradient, clipped.

    log10_norm : of the gradient, over all parameters; log10_held : of what is held against the threshold:
        that norm, the largest of a variable's, or the largest entry.
    acts : whether anything is changed; factor : the norm after over that before; cosine : of the angle
        between.
    weights : what every entry is multiplied by, {parameter: a number or its shape}.
    """

    log10_norm: float
    log10_held: float
    acts: bool
    factor: float
    cosine: float
    weights: Mapping[str, Any]


@dataclass(frozen=True)
class Clipping:
    """What clipping does to the gradient of every sequence, and to that of the whole batch, their sum.

    law, threshold : as asked for.
    log10_norm, factor, cosine : (B,), of every sequence's gradient alone; acts : (B,) booleans.
    batch : log10_norm, factor and cosine of the sum.
    log10_part, log10_clipped : (T,), log10 |G_k| of what lag k = 1..T contributes to the batch's gradient by
        the recurrent matrices, before and after.
    suggested : the threshold that leaves nine tenths of the sequences as they are.
    factor_error : estimated, of the factors; None of results that are older than it.
    """

    law: str
    threshold: float
    log10_norm: Array
    factor: Array
    cosine: Array
    acts: Array
    batch: Mapping[str, float]
    log10_part: Array
    log10_clipped: Array
    suggested: float
    factor_error: float | None = None

    @property
    def proportion(self) -> float:
        """On what part of the sequences it acts, which Kaldi logs as clipped-proportion."""
        return float(np.mean(self.acts))

    def to_dict(self, lags: Array) -> dict[str, Any]:
        """The part ``loss.clip`` of the JSON object, at these lags."""
        return {
            "law": self.law,
            "threshold": self.threshold,
            "clipped_proportion": self.proportion,
            "factor": _extremes(self.factor),
            "factor_error": self.factor_error,
            "cosine": _extremes(self.cosine),
            "sequences": {
                "log10_norm": self.log10_norm,
                "factor": self.factor,
                "cosine": self.cosine,
            },
            "batch": dict(self.batch),
            "suggested": self.suggested,
            "profile": {
                "lag": lags.tolist(),
                "log10_norm": self.log10_part[lags - 1],
                "log10_clipped": self.log10_clipped[lags - 1],
            },
        }


def clipped(gradient: Total, clip: Clip, twice: Sequence[str] = ()) -> ClippedGradient:
    """A gradient clipped.

    twice : parameters that are the sum of two in their framework, each of which has this gradient (torch's
        two biases): they count twice.
    """
    counts = {name: 2.0 if name in twice else 1.0 for name in gradient.arrays}
    largest = max((float(np.abs(array).max(initial=0.0)) for array in gradient.arrays.values()), default=0.0)
    shift = int(np.frexp(largest)[1])
    arrays = {name: np.ldexp(array, -shift) for name, array in gradient.arrays.items()}
    exponent = gradient.exponent + shift
    weights, held = _weights(arrays, exponent, clip, counts)
    after = {name: arrays[name] * weights[name] for name in arrays}
    whole, left = _norm(arrays, counts), _norm(after, counts)
    inner = sum(counts[name] * float((arrays[name] * after[name]).sum()) for name in arrays)
    factor = left / whole if whole else 1.0
    if clip.how.over == "all":
        factor = min(1.0, float(next(iter(weights.values()))))  # to the last digit
    return ClippedGradient(
        log10_norm=float(decades(whole, exponent)),
        log10_held=held,
        acts=any(bool((np.asarray(one) < 1).any()) for one in weights.values()),
        factor=factor,
        cosine=min(1.0, inner / whole / left) if whole and left else 1.0,
        weights=weights,
    )


def clipping_of(
    clip: Clip, each: Sequence[ClippedGradient], batch: ClippedGradient, sums: LagSums, eps: float
) -> Clipping:
    """Of every sequence and of the batch; sums : of it by lag, before and after; eps : of its dtype."""
    group = "R" if "R" in sums.log10_part else ALL
    return Clipping(
        law=clip.law,
        threshold=clip.threshold,
        log10_norm=np.array([one.log10_norm for one in each]),
        factor=np.array([one.factor for one in each]),
        cosine=np.array([one.cosine for one in each]),
        acts=np.array([one.acts for one in each]),
        batch={name: getattr(batch, name) for name in ("log10_norm", "factor", "cosine")},
        log10_part=sums.log10_part[group],
        log10_clipped=sums.log10_kept[group],
        suggested=_percentile(np.array([one.log10_held for one in each])),
        factor_error=max(one.factor for one in each) * _error_of_norm(sums, eps),
    )


def _error_of_norm(sums: LagSums, eps: float) -> float:
    """Relative, of the norm of a gradient G = sum over k of G_k, and so of a factor that is held against it.

    A part that came back k steps has the roundings of k steps, which add up like a random walk; of parts that
    cancel, those of each stay.
    """
    parts, whole = sums.log10_part[ALL], sums.log10_whole[ALL]
    if whole == -math.inf:
        return 0.0
    walked = ROUNDINGS * eps * np.sqrt(np.arange(1, len(parts) + 1))
    with np.errstate(over="ignore"):
        return float(np.sum(walked * 10 ** (parts - whole)))


def _weights(
    arrays: Mapping[str, Array], exponent: int, clip: Clip, counts: Mapping[str, float]
) -> tuple[dict[str, Any], float]:
    """What each entry is multiplied by, and log10 of what is held against the threshold."""
    how = clip.how
    if how.over == "all":
        norm = float(decades(_norm(arrays, counts), exponent))
        return dict.fromkeys(arrays, _factor(clip, norm)), norm
    if how.over == "variable":
        norms = {
            variable: float(decades(_norm({name: arrays[name] for name in names}, counts), exponent))
            for variable, names in variables(arrays).items()
        }
        of = {name: variable for variable, names in variables(arrays).items() for name in names}
        return {name: _factor(clip, norms[of[name]]) for name in arrays}, max(norms.values())
    entries = max(float(np.abs(array).max(initial=0.0)) for array in arrays.values())
    return {name: _of_entries(clip, array, exponent) for name, array in arrays.items()}, float(
        decades(entries, exponent)
    )


def variables(names: Sequence[str] | Mapping[str, Any]) -> dict[str, list[str]]:
    """Which parameters are one variable of a Keras layer: it keeps those of all gates in one."""
    found: dict[str, list[str]] = {}
    for name in names:
        module = name.rpartition(".")[0]
        kinds = {"kernel": is_input_weight, "recurrent_kernel": is_recurrent, "bias": is_any_bias}
        variable = next((kind for kind, holds in kinds.items() if holds(name)), None)
        found.setdefault(name if variable is None else f"{module}.{variable}", []).append(name)
    return found


def _factor(clip: Clip, log10_norm: float) -> float:
    """min(1, threshold / (norm + epsilon)), whatever the size of the norm."""
    if log10_norm > 300:
        return 10 ** max(math.log10(clip.threshold) - log10_norm, -400.0)
    norm = 10**log10_norm + clip.how.epsilon
    return min(1.0, clip.threshold / norm) if norm > 0 else 1.0


def _of_entries(clip: Clip, array: Array, exponent: int) -> Array:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        most = np.ldexp(clip.threshold, -exponent)
        return np.where(np.abs(array) > most, most / np.abs(array), 1.0)


def _norm(arrays: Mapping[str, Array], counts: Mapping[str, float]) -> float:
    """Of arrays none of which has an entry above 1."""
    return math.sqrt(sum(counts[name] * float((array**2).sum()) for name, array in arrays.items()))


def _extremes(values: Array) -> dict[str, float]:
    return {"median": float(np.median(values)), "min": float(values.min()), "max": float(values.max())}


def _percentile(logs: Array) -> float:
    """The percentile of numbers from their log10."""
    top = float(logs.max())
    if top == -math.inf:
        return 0.0
    of_largest = np.percentile(10 ** (logs - top), _LEFT_ALONE)
    with np.errstate(over="ignore"):
        return float(np.float64(10) ** (top + np.log10(of_largest)))
