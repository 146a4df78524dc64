"""What the masks of training do to the gain: over many of them, and with each replaced by its mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.measure.measured import Measured
from gradscope.problem.masks import Drawn
from gradscope.report.chains import Chain, chain_of

# Of all gains, those that the spread lies between.
_SPREAD = (5, 95)


@dataclass(frozen=True)
class MaskedGains:
    """The chain of the full state along networks with masks.

    law, probability, count, seed : of the masks, ``count`` of each sequence, see ``Drawn``.
    drawn : the chain of all of them, one sequence and mask after the other; mean : with mean masks, of
        h-detach the mean chain (``scale`` 1 - p on R_*), of the others the network outside of training.
    """

    law: str
    probability: tuple[float, ...]
    count: int
    seed: int
    drawn: Chain
    mean: Chain

    @property
    def log10_spread(self) -> tuple[float, float]:
        """log10 gain that 5 and 95 per cent of the masks stay below."""
        low, high = np.percentile(_gains(self.drawn), _SPREAD, method="inverted_cdf")
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """The part ``masks`` of the JSON object."""
        return {
            "law": self.law,
            "probability": list(self.probability),
            "count": self.count,
            "seed": self.seed,
            "log10_norm": vars(self.drawn.log10_norm),
            "log10_norm_error": self.drawn.log10_norm_error,
            **self.drawn.told_unmeasured,
            "rate": vars(self.drawn.rate),
            "log10_spread": list(self.log10_spread),
            "horizon": vars(self.drawn.horizon),
            "log10_norms": [row.tolist() for row in _gains(self.drawn).reshape(-1, self.count)],
            "mean": {
                "log10_norm": vars(self.mean.log10_norm),
                **self.mean.told_unmeasured,
                "horizon": vars(self.mean.horizon),
            },
        }


def _gains(chain: Chain) -> Any:
    return np.array([float(s.log10_singular_values[0]) for s in chain.spectra])


def masked_gains(
    masks: Drawn, drawn: Sequence[Measured], mean: Sequence[Measured], vanishing_below: float
) -> MaskedGains:
    """Of what was measured of the problems that ``masked_problems`` made."""
    chains = [chain_of("full", [one.full for one in each], vanishing_below) for each in (drawn, mean)]
    return MaskedGains(masks.law, masks.probability, masks.count, masks.seed, *chains)
