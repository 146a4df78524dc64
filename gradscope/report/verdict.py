"""The level that thresholds on the gain give, and the reasons in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.report.chains import Chain
from gradscope.settings import Level, Policy


@dataclass(frozen=True)
class Verdict:
    """``level`` is vanishing, stable, exploding or undecided; ``reasons`` are sentences with numbers.

    matched : those of the whole and of its layers whose level was looked for, see ``Analysis.matching``;
    notes : what else there is to know of trajectory and chain, with its remedy; of a healthy network nothing.
    """

    level: Level
    reasons: tuple[str, ...]
    matched: tuple[Matched, ...] = ()
    notes: tuple[str, ...] = ()

    def noting(self, notes: Iterable[str]) -> Verdict:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def to_dict(self) -> dict[str, Any]:
        """As JSON tells it; what was looked for is told of the whole alone."""
        return {"level": self.level, "reasons": list(self.reasons), "notes": list(self.notes)}


@dataclass(frozen=True)
class Matched:
    """A level that was looked for, and whose it is: a layer's by its name in the file, None the whole's."""

    level: Level
    layer: str | None


def level(chain: Chain, policy: Policy) -> Level:
    """The level of one chain: the median sequence decides, its error estimate may leave it open."""
    low, high = math.log10(policy.vanishing_below), math.log10(policy.exploding_above)
    error = chain.log10_norm_error
    if chain.log10_peak.median - error > high:
        return "exploding"
    if chain.log10_peak.median + error > high or math.isnan(chain.log10_norm.median):
        return "undecided"
    if chain.log10_norm.median + error < low:
        return "vanishing"
    return "undecided" if chain.log10_norm.median - error < low else "stable"


# Paths that are named.
_MOST_CULPRITS = 3


def scientific(log10: float, digits: int = 3) -> str:
    """``3.48e-24`` for the number whose log10 is given, however far outside float range."""
    if not log10 > -math.inf:
        return "lost in rounding" if math.isnan(log10) else "0"
    exponent = math.floor(log10)
    mantissa = f"{10.0 ** (log10 - exponent):.{digits - 1}f}"
    if mantissa.startswith("10"):
        mantissa, exponent = f"{1:.{digits - 1}f}", exponent + 1
    return mantissa if exponent == 0 else f"{mantissa}e{exponent:+03d}"


def error_figures(error: float) -> str:
    """``3e-14``: an error in decades, of which the size is all that matters."""
    return f"{error:.0e}" if error else "0"


def judge(
    chains: Sequence[Chain],
    shares: Mapping[str, float],
    policy: Policy,
    *,
    trajectory: bool = True,
    without: Mapping[str, Chain] | None = None,
) -> Verdict:
    """The verdict on the first chain, the full one.

    shares : {path: mean share}; trajectory : whether a forward pass was computed for it; without : {path: the
        full chain without it}.
    """
    full = chains[0]
    sentences = [_gain(full, policy, trajectory), _way(full, policy)]
    if full.exact_zeros and (zeros := int(np.median(full.exact_zeros))):
        sentences.append(f"{zeros} of the {full.size} singular values are {_zero(trajectory)}.")
    if len(shares) > 1 and full.log10_norm.median > -math.inf and any(map(math.isfinite, shares.values())):
        sentences.append(_carrier(chains, shares))
    found = level(full, policy)
    if found == "exploding" and without:
        sentences += _culprits(without, policy)
    return Verdict(found, tuple(sentences))


def _culprits(without: Mapping[str, Chain], policy: Policy) -> list[str]:
    """The paths without any one of which the chain does not explode, the one that leaves it stable first."""
    levels = {name: level(chain, policy) for name, chain in without.items()}
    cured = [name for name in without if levels[name] not in ("exploding", "undecided")]
    if not cured:
        return ["No path alone makes it explode: without any one of them it still does."]
    cured.sort(key=lambda name: (levels[name] != "stable", abs(without[name].log10_norm.median)))
    said = [
        f"without {name} it is {levels[name]} (gain {scientific(without[name].log10_norm.median)})"
        for name in cured[:_MOST_CULPRITS]
    ]
    return [f"{', '.join(said)}, all other paths as they are.".replace("without", "Without", 1)]


def _zero(rounded: bool) -> str:
    """Jacobians from a forward pass are right to a few roundings: smaller pivots count as zero."""
    return "zero, exactly or to the rounding of the Jacobians" if rounded else "exactly zero"


def _gain(full: Chain, policy: Policy, rounded: bool) -> str:
    gain = full.log10_norm.median
    if gain == -math.inf:
        over = f"over {steps_of(full.lengths)}"
        zero = "zero, exactly or below what the dtype holds" if rounded else "exactly zero"
        return f"The product {over} is {zero}: no gradient reaches its first step."
    if math.isnan(gain):
        return (
            f"Over {steps_of(full.lengths)} rounding leaves no digit of the gain (sigma_1 of the "
            "product): give fewer steps, or inputs and weights of smaller size."
        )
    where = f"between the thresholds {policy.vanishing_below:g} and {policy.exploding_above:g}"
    if gain < math.log10(policy.vanishing_below):
        where = f"below the vanishing threshold {policy.vanishing_below:g}"
    elif gain > math.log10(policy.exploding_above):
        where = f"above the exploding threshold {policy.exploding_above:g}"
    batch = f", median of {len(full.spectra)} sequences" if len(full.spectra) > 1 else ""
    return (
        f"Over {steps_of(full.lengths)} the gradient's gain (sigma_1 of the product{batch}) is "
        f"{scientific(gain)}, {where}; error of log10 gain {error_figures(full.log10_norm_error)}."
    )


def _way(full: Chain, policy: Policy) -> str:
    steps, horizon, peak = np.median(full.lengths), full.horizon.median, full.log10_peak.median
    if horizon >= steps:
        reach = f"at every lag up to {steps:.10g}"
    else:
        reach = f"up to lag {horizon:g} of {steps:.10g}" if horizon else "at no lag"
    reach += " (medians)" if len(set(full.lengths)) > 1 else ""
    text = f"The gain stays at or above {policy.vanishing_below:g} {reach}"
    if peak > math.log10(policy.exploding_above) and peak > full.log10_norm.median:
        text += f", and is largest, {scientific(peak)}, at lag {full.peak_lag.median:g}"
    return f"{_rate(full)}{text}."


def steps_of(lengths: Sequence[int]) -> str:
    """How many steps, from those of the shortest sequence to those of the longest."""
    return f"{range_of(lengths)} {'step' if max(lengths) == 1 == min(lengths) else 'steps'}"


def range_of(counts: Sequence[int]) -> str:
    """``2 to 5``, ``5`` where all are."""
    least, most = min(counts), max(counts)
    return f"{least} to {most}" if least < most else str(most)


def _rate(full: Chain) -> str:
    rate = full.rate.median
    if not math.isfinite(rate):
        return ""
    text = f"The rate is {rate:+.4f} nats per step"
    if abs(rate) < 1e-12:
        return f"{text}. "
    return f"{text}: {'halved' if rate < 0 else 'doubled'} every {math.log(2) / abs(rate):.3g} steps. "


def _carrier(chains: Sequence[Chain], shares: Mapping[str, float]) -> str:
    name = max(shares, key=lambda path: abs(shares[path]))
    text = f"{name} carries {100 * shares[name]:.0f} % of the gradient"
    own = next(chain for chain in chains if chain.name == name)
    gain = scientific(own.log10_norm.median)
    if "->" in name:  # of two layers: alone it is nothing
        return f"{text}; this block of the whole product has a gain of {gain}."
    return f"{text}; alone it would give a gain of {gain}."
