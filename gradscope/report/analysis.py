"""The result: one frozen dataclass of which table, JSON and exit code are views."""

from __future__ import annotations

import bisect
import html
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.report.chains import WITHOUT, Chain, Extremes, mean_share
from gradscope.report.remedies import Remedies, told_of
from gradscope.report.verdict import Matched, Verdict
from gradscope.settings import Only, Policy
from gradscope.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from gradscope.measure.loss import LossGradient
    from gradscope.measure.sensitivity import Sensitivity
    from gradscope.report.masked import MaskedGains
    from gradscope.report.pictures.picture import Picture

SCHEMA = "gradscope/analysis/1"
_MAX_LAGS = 1000
# Columns of the table in a notebook.
_NOTEBOOK = 100
_NORMS = ("lag", "log10_norm", "lost")
_NO_PROFILE: dict[str, Any] = {"lag": [], "log10_norm": [], "share": {}}


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

    def matching(self, levels: Collection[str]) -> Analysis:
        """The same with ``verdict.matched``: what of the whole and of its layers has one of these levels."""
        parts = [(None, self), *((str(layer.problem["layer"]), layer) for layer in self.layers)]
        matched = [Matched(part.verdict.level, name) for name, part in parts if part.verdict.level in levels]
        return replace(self, verdict=replace(self.verdict, matched=tuple(matched)))

    def __repr__(self) -> str:
        from gradscope.report.table import headline

        return f"<Analysis {headline(self)}>"

    def __str__(self) -> str:
        from gradscope.report.table import render_table
        from gradscope.report.terminal import terminal_for
        from gradscope.report.views import Look

        return render_table(self, Look(terminal_for("never", to_file=False))).rstrip("\n")

    def _repr_html_(self) -> str:
        """The table and the gain by lag, as notebooks show them."""
        from gradscope.report.table import render_table
        from gradscope.report.terminal import Terminal
        from gradscope.report.views import Look

        text = render_table(self, Look(Terminal(_NOTEBOOK)))
        drawn = "" if self.only == "verdict" else self.figure("lag", size="page").svg(f"gradscope-{id(self)}")
        return f'<pre style="line-height: 1.2">{html.escape(text)}</pre>{drawn}'

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
        from gradscope.report.json import strict

        return strict(self.to_dict(all_lags=all_lags))

    def to_dict(self, *, all_lags: bool = False) -> dict[str, Any]:
        """The JSON object ``gradscope/analysis/1``: plain Python, no NaN, exact zeros as None.

        all_lags : every lag of the profile, also beyond T = 1000.
        """
        layers = {"layers": [layer._parts(all_lags) for layer in self.layers]} if self.layers else {}
        parts = self._parts(all_lags)
        parts["verdict"]["matched"] = [vars(one) for one in self.verdict.matched]
        return {"schema": SCHEMA, "gradscope": __version__, **parts, **layers}

    def _parts(self, all_lags: bool) -> dict[str, Any]:
        """What JSON tells of the whole, and of each layer."""
        shown = lags(self.full.steps, every=all_lags)
        loss = {} if self.loss is None else {"loss": _plain(self.loss.to_dict(shown))}
        without = {
            name: _without(chain, self.levels[WITHOUT + name], all_lags)
            for name, chain in self.without.items()
        }
        changes = {} if self.sensitivity is None else {"sensitivity": _plain(self.sensitivity.to_dict())}
        return {
            "problem": dict(self.problem),
            "verdict": {
                "level": self.verdict.level,
                "reasons": list(self.verdict.reasons),
                "notes": list(self.verdict.notes),
            },
            "thresholds": {
                "vanishing_below": self.policy.vanishing_below,
                "exploding_above": self.policy.exploding_above,
            },
            "chains": [
                _chain(
                    chain,
                    self.levels[chain.name],
                    self.full.engine,
                    None if self.only == "verdict" else shown,
                )
                for chain in self.chains
            ],
            "engine": self.full.engine,
            "matrices": [{"name": name, **_plain(matrix)} for name, matrix in self.matrices.items()],
            "profile": _NO_PROFILE if self.only == "verdict" else _profile(self.full, self.shares, all_lags),
            "shares": _plain(self.mean_shares),
            **({"sequences": self._sequences()} if self.sequence_shares else {}),
            **({"without": without} if without else {}),
            **({"returning": _plain(self.returning)} if self.returning else {}),
            "gates": _plain(self.gates),
            **loss,
            **({} if self.masks is None else {"masks": _plain(self.masks.to_dict())}),
            **changes,
            **told_of(self.remedies),
        }

    def _sequences(self) -> dict[str, Any]:
        """What JSON tells of every sequence that it has only together otherwise."""
        return {"shares": _plain(self.sequence_shares), "shares_error": _plain(self.shares_error)}


def lags(steps: int, *, every: bool = False) -> Array:
    """Lags shown: 1..T up to T = 1000 (or ``every``), else about a thousand log-spaced ones."""
    if every or steps <= _MAX_LAGS:
        return np.arange(1, steps + 1)

    def spaced(count: int) -> Array:
        return np.unique(np.geomspace(1, steps, count).round().astype(np.int64))

    # The small ones coincide when rounded: as many points as leave a thousand different lags.
    enough = bisect.bisect_left(range(100 * _MAX_LAGS), _MAX_LAGS, lo=1, key=lambda n: len(spaced(n)))
    return spaced(enough - 1)


def _chain(chain: Chain, level: str, engine: str, shown: Array | None) -> dict[str, Any]:
    """A chain as JSON tells it; what only all values tell is absent where there are fewer.

    engine : that of the full chain; shown : lags of its profile, None for no profile.
    """
    whole = {"exact_zeros": list(chain.exact_zeros)} if chain.exact_zeros else {}
    rms = {} if chain.log10_rms is None else {"log10_rms": _extremes(chain.log10_rms)}
    known = shown is not None or all(s.log10_largest_gain is not None for s in chain.spectra)
    largest = {"log10_largest_gain": _extremes(chain.log10_largest_gain)} if known else {}
    return {
        "name": chain.name,
        "size": chain.size,
        "verdict": level,
        "log10_singular_values": [_plain(s.log10_singular_values) for s in chain.spectra],
        **whole,
        **chain.told_unmeasured,
        **({} if chain.engine == engine else {"engine": chain.engine}),
        "log10_norm": _extremes(chain.log10_norm),
        "log10_norm_error": [_plain(s.log10_norm_error) for s in chain.spectra],
        **largest,
        **rms,
        "rate": _extremes(chain.rate),
        "horizon": _extremes(chain.horizon),
        "log10_error": [_plain(s.log10_error) for s in chain.spectra],
        **({} if shown is None else {"by_lag": _by_lag(chain, shown)}),
    }


def _by_lag(chain: Chain, shown: Array) -> dict[str, Any]:
    """The gain at these lags, as far as it is known there, the median of the sequences that are as long."""
    at = chain.lags if len(chain.lags) < chain.steps else shown
    norms = chain.median_by_lag[np.isin(chain.lags, at)]
    return {"lag": at.tolist(), "log10_norm": _plain(norms)} | _lost(chain, at)


def _lost(chain: Chain, shown: Array) -> dict[str, Any]:
    """The lags whose gain is lost, where there are any: null stands for 0 too."""
    lost = np.intersect1d(chain.lost_lags, shown).tolist()
    return {"lost": lost} if lost else {}


def _without(chain: Chain, level: str, all_lags: bool) -> dict[str, Any]:
    """The full chain without a path as JSON tells it."""
    return {
        "log10_norm": _extremes(chain.log10_norm),
        "log10_norm_error": [_plain(s.log10_norm_error) for s in chain.spectra],
        "horizon": _extremes(chain.horizon),
        "verdict": level,
        **chain.told_unmeasured,
        "profile": {name: told for name, told in _profile(chain, {}, all_lags).items() if name in _NORMS},
    }


def _profile(full: Chain, shares: Mapping[str, Array], all_lags: bool) -> dict[str, Any]:
    known = full.lags
    shown = known if len(known) < full.steps else lags(full.steps, every=all_lags)
    norms = _plain(full.by_lag[:, np.isin(known, shown)])
    # Lag k reaches back through step t = T - k + 1.
    share = {name: _plain(by_step[::-1][shown - 1]) for name, by_step in shares.items()}
    told = {"lag": shown.tolist(), "log10_norm": norms, "share": share} | _lost(full, shown)
    errors = full.error_by_lag
    return told | ({"error": {"lag": [*errors], "log10_norm": [*errors.values()]}} if errors else {})


def _extremes(extremes: Extremes) -> dict[str, Any]:
    return {"median": _plain(extremes.median), "min": _plain(extremes.min), "max": _plain(extremes.max)}


def _plain(value: Any) -> Any:
    """Numbers, arrays and mappings as JSON knows them; what is not finite is None."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
