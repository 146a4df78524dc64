"""The result: one frozen dataclass of which table, JSON and exit code are views."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.report.chains import Chain, mean_share
from gradscope.report.json import strict, told_of_analysis
from gradscope.report.remedies import Remedies
from gradscope.report.verdict import Matched, Verdict
from gradscope.report.views import in_notebook, printed
from gradscope.settings import Only, Policy

if TYPE_CHECKING:
    import pandas as pd

    from gradscope.measure.loss import LossGradient
    from gradscope.measure.sensitivity import Sensitivity
    from gradscope.report.masked import MaskedGains
    from gradscope.report.pictures.picture import Picture


@dataclass(frozen=True, repr=False)
class Analysis:
    """What was measured of one problem; printed it is a table.

    problem : what was analysed, as JSON tells it; verdict : level and reasons; policy : thresholds;
    chains : the full chain first, then one per path; levels : {chain name: level};
    shares : {path: (T,) share at each step t = 1..T, mean over the batch}, empty for a bare chain; of
        sequences of different length the last step is the same;
    sequence_shares : {path: (B,) mean over the steps of every sequence}, NaN where nothing gets through;
        shares_error : (B,), estimated, of these, NaN where it is not known;
    without : {path: the full chain without it}, its first value alone, along the same states; levels has
        theirs as "without PATH".
    returning : {layer, or "": {"step", "unit", "log10"}}, the gradient that survives best on its way back, by
        unit and step: |b_t|, b_t = (J_T ... J_(t+1))^T u with u the top left singular vector; of the first
        sequence, empty where only the top values are there.
    gates : {gate: {"mean", "saturated"}}; matrices : {name: spectral norm, radius, singular values};
    layers : of several layers, the analysis of each; the rest is then about all of them together;
    loss : what a loss sends back, None where there is none; sensitivity : how the gain changes with every
        parameter, None where that was not asked for, or ``verdict.notes`` says why it has none; of layers of
        which none reads another it is with each; masks : the gain with the masks of training, None where that
        is not asked for; remedies : what to do about the layers that are connected, and about each that stand
        side by side, none where that is not asked for. only : what was measured, see ``analyze``: of a
        verdict or a gain alone there is the full chain and its first singular value, no paths, no shares.
    """

    problem: Mapping[str, Any]
    policy: Policy
    verdict: Verdict
    chains: tuple[Chain, ...]
    levels: Mapping[str, str]
    shares: Mapping[str, Array] = field(default_factory=dict)
    gates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    matrices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    layers: tuple[Analysis, ...] = ()
    loss: LossGradient | None = None
    masks: MaskedGains | None = None
    only: Only = "all"
    sensitivity: Sensitivity | None = None
    without: Mapping[str, Chain] = field(default_factory=dict)
    returning: Mapping[str, Any] = field(default_factory=dict)
    remedies: tuple[Remedies, ...] = ()
    sequence_shares: Mapping[str, Array] = field(default_factory=dict)
    shares_error: Array = field(default_factory=lambda: np.empty(0))

    def chain(self, name: str) -> Chain:
        """The chain called ``name``; raises KeyError, with the names that there are."""
        found = {chain.name: chain for chain in self.chains}
        if name not in found:
            raise KeyError(f"no chain {name!r}, expected one of {', '.join(found)}")
        return found[name]

    @property
    def full(self) -> Chain:
        """The chain of the full state."""
        return self.chains[0]

    @property
    def mean_shares(self) -> dict[str, float]:
        """Each path's share in carrying the gradient, mean over steps and sequences; they sum to 1."""
        return {name: mean_share(share, self.full) for name, share in self.shares.items()}

    @property
    def parts(self) -> list[tuple[str | None, Analysis]]:
        """The whole, by no name, and each of several layers by its own."""
        return [(None, self), *((str(layer.problem["layer"]), layer) for layer in self.layers)]

    def matching(self, levels: Collection[str]) -> Analysis:
        """The same with ``verdict.matched``: what of the whole and of its layers has one of these levels."""
        found = [(part.verdict.level, name) for name, part in self.parts]
        matched = [Matched(level, name) for level, name in found if level in levels]
        return replace(self, verdict=replace(self.verdict, matched=tuple(matched)))

    def __repr__(self) -> str:
        from gradscope.report.table import headline

        return f"<Analysis {headline(self)}>"

    def __str__(self) -> str:
        return printed(self)

    def _repr_html_(self) -> str:
        """The table and the gain by lag, as notebooks show them."""
        drawn = "" if self.only == "verdict" else self.figure("lag", size="page").svg(f"gradscope-{id(self)}")
        return in_notebook(self) + drawn

    def figure(self, name: str = "lag", *, size: str = "column", layer: str | None = None) -> Picture:
        """A picture, which notebooks show: lag, layers, share, spectrum, heatmap, gates or eigenvalues.

        size : ``column`` (85 x 64 mm), ``wide``, ``slide``, ``page`` or millimetres as ``120x80``; layer : of
        several the one of this name, instead of the whole. Raises InputError where there is nothing to draw.
        """
        from gradscope.report.pictures.figures import picture

        return picture(self.to_dict(), name, size, layer)

    def scalars(self) -> dict[str, float]:
        """Numbers for a logger by flat names, such as ``log10_norm`` or ``path/R_o/share``."""
        from gradscope.report.numbers import scalars

        return scalars(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A pandas DataFrame with a row for every chain and sequence; raises InputError without pandas."""
        from gradscope.report.numbers import to_dataframe

        return to_dataframe(self)

    def save(self, path: PathLike) -> None:
        """Write a JSON file that ``load`` makes the same Analysis of; programs read it as ``to_json``."""
        from gradscope.report.saved import write_analysis

        write_analysis(self, path)

    @classmethod
    def load(cls, path: PathLike) -> Analysis:
        """The Analysis in a file of ``save``, to the last digit; raises InputError for any other file."""
        from gradscope.report.saved import read_analysis

        return read_analysis(path)

    def to_json(self, *, all_lags: bool = False) -> str:
        """What ``to_dict`` returns, as text; the same as ``--json``."""
        return strict(self.to_dict(all_lags=all_lags))

    def to_dict(self, *, all_lags: bool = False) -> dict[str, Any]:
        """The JSON object ``gradscope/analysis/1``: plain Python, no NaN, exact zeros as None.

        all_lags : every lag of the profile, also beyond T = 1000.
        """
        return told_of_analysis(self, all_lags)
