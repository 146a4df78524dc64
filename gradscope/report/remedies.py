"""What to do about a network: settings of its knobs that reach a target, each verified by an analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradscope.report.numbers import json_number

# How far knobs go: added to a bias, and the factors of a matrix.
MOST_SHIFT, MOST_FACTOR, LEAST_FACTOR = 10.0, 10.0, 0.01


@dataclass(frozen=True)
class Suggestion:
    """One knob: what reaches the target, or that nothing does.

    knob : what is set; value, was : of the mean bias, of the factor (1 before), of the largest singular value
        that is left, or None and None where it is no number; words : the setting, for people; setting : for
        ``repair --knob``, None where a file cannot have it.
    reaches : whether it reaches the target, as the analysis of the changed network says; where not,
        value and what follows are the nearest that was found.
    predicted_log10, predicted_horizon : what the first order said of log10 gain and horizon; None where
        there is no derivative. verified_log10, horizon : what was measured, medians of the batch, None where
        a state is no number any more. evaluations : how often the network was analysed; monotone : whether
        the gain rose, or fell, through all that was tried; shares : {path: (before, after)} of those that
        moved.
    """

    knob: str
    value: float | None
    was: float | None
    words: str
    setting: str | None
    reaches: bool
    predicted_log10: float | None
    predicted_horizon: int | None
    verified_log10: float | None
    horizon: float | None
    verdict: str | None
    evaluations: int
    monotone: bool
    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON tells it."""
        told = {name: json_number(value) for name, value in vars(self).items() if name != "shares"}
        if self.verified_log10 is not None and math.isnan(self.verified_log10):
            told["unmeasured"] = "the gain is lost: rounding leaves nothing of it"
        return told | {"shares": {name: list(map(json_number, pair)) for name, pair in self.shares.items()}}


@dataclass(frozen=True)
class Remedies:
    """What was tried of one layer or one stack.

    target : in words; reached : whether that is reached already, and no weight is to be changed;
    log10_norm, horizon : as the network is, medians of the batch; suggestions : of every knob that was tried;
    advice : what a number cannot tell, with its source; layers : its layers ("layer0", ...) where others
        stand beside it.
    """

    target: str
    reached: bool
    log10_norm: float
    horizon: float
    suggestions: tuple[Suggestion, ...]
    advice: tuple[str, ...]
    layers: tuple[str, ...] = ()


def told_of(remedies: Sequence[Remedies]) -> dict[str, Any]:
    """The part of a JSON object about all that stand side by side, nothing where there are none."""
    if not remedies:
        return {}
    return {
        "target": remedies[0].target,
        "reached": all(one.reached for one in remedies),
        "suggestions": [suggestion.to_dict() for one in remedies for suggestion in one.suggestions],
        "advice": list(dict.fromkeys(sentence for one in remedies for sentence in one.advice)),
    }
