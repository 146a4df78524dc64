"""What a network is to reach: a stable gain, a gain of one, a horizon."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from gradscope.errors import counted
from gradscope.report.analysis import Analysis
from gradscope.settings import Policy

# Decades: beyond what is asked for, and within which a search is done.
MARGIN, CLOSE_ENOUGH = 0.1, 0.05
# What a gain of 0, or one that is no number, counts as.
_FAR = 1e4


@dataclass(frozen=True)
class Goal(ABC):
    """A target for the median of the batch."""

    policy: Policy

    @abstractmethod
    def excess(self, analysis: Analysis) -> float:
        """Decades by which the gain is above what is aimed at; negative where it is below."""

    @abstractmethod
    def reached(self, analysis: Analysis) -> bool:
        """Whether this is what was asked for."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The target, for people."""

    @property
    def _thresholds(self) -> tuple[float, float]:
        return math.log10(self.policy.vanishing_below), math.log10(self.policy.exploding_above)


@dataclass(frozen=True)
class Stable(Goal):
    """A gain between the thresholds; aimed at is what is halfway to a gain of 1, so that little is changed.

    exploding : whether it is the largest gain on the way that must come down.
    """

    exploding: bool

    def excess(self, analysis: Analysis) -> float:
        """Of the gain, or the largest on the way, over what is halfway between threshold and 1."""
        low, high = self._thresholds
        chain = analysis.full
        if self.exploding:
            return countable(chain.log10_peak.median - high / 2)
        return countable(chain.log10_norm.median - low / 2)

    def reached(self, analysis: Analysis) -> bool:
        """Whether the verdict is stable."""
        return analysis.verdict.level == "stable"

    @property
    def words(self) -> str:
        """``a gain between 0.001 and 1000``."""
        return f"a gain between {self.policy.vanishing_below:g} and {self.policy.exploding_above:g}"


@dataclass(frozen=True)
class Critical(Goal):
    """A gain of 1 over all steps."""

    def excess(self, analysis: Analysis) -> float:
        """Of the gain over 1."""
        return countable(analysis.full.log10_norm.median)

    def reached(self, analysis: Analysis) -> bool:
        """Whether that is close enough, and nothing explodes on the way."""
        return abs(self.excess(analysis)) <= CLOSE_ENOUGH and analysis.verdict.level != "exploding"

    @property
    def words(self) -> str:
        """``a gain of 1``."""
        return "a gain of 1"


@dataclass(frozen=True)
class Horizon(Goal):
    """A gain above the vanishing threshold at every lag up to ``steps``, and none above the exploding one."""

    steps: int

    def excess(self, analysis: Analysis) -> float:
        """Of the least gain up to that lag, over the vanishing threshold and a margin."""
        full = analysis.full
        norms = np.nanmedian(full.by_lag, axis=0)[full.lags <= self.steps]
        return countable(float(norms.min()) - self._thresholds[0] - MARGIN)

    def reached(self, analysis: Analysis) -> bool:
        """Whether the median horizon is as far, and nothing explodes."""
        return analysis.full.horizon.median >= self.steps and analysis.verdict.level != "exploding"

    @property
    def words(self) -> str:
        """``a horizon of 500 steps``."""
        return f"a horizon of {counted(self.steps, 'step')}"


def countable(decades: float) -> float:
    """A number that a search can go by."""
    return float(np.clip(np.nan_to_num(decades, nan=_FAR, posinf=_FAR, neginf=-_FAR), -_FAR, _FAR))
