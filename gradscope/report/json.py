"""A result as strict JSON: the object that tells of an analysis, and the text of any."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.report.chains import WITHOUT, Chain, Extremes
from gradscope.report.remedies import told_of
from gradscope.report.views import Look, Told
from gradscope.version import __version__

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis

SCHEMA = "gradscope/analysis/1"
_MAX_LAGS = 1000
_NORMS = ("lag", "log10_norm", "lost")
_NO_PROFILE: dict[str, Any] = {"lag": [], "log10_norm": [], "share": {}}


def render_json(analysis: Analysis, look: Look) -> str:
    """One object and a newline; every float to its last digit, no NaN, no Infinity."""
    return strict(analysis.to_dict(all_lags=look.all_lags))


def told_json(result: Told, look: Look) -> str:
    """The same of a result that has no lags: what is in a checkpoint, suggestions."""
    return strict(result.to_dict())


def strict(told: Mapping[str, Any]) -> str:
    """A JSON object as text."""
    return json.dumps(told, allow_nan=False) + "\n"


def told_of_analysis(analysis: Analysis, all_lags: bool) -> dict[str, Any]:
    """The object of this schema; all_lags : every lag of the profile, also beyond T = 1000."""
    parts = _parts(analysis, all_lags)
    parts["verdict"]["matched"] = [vars(one) for one in analysis.verdict.matched]
    layers = {"layers": [_parts(layer, all_lags) for layer in analysis.layers]} if analysis.layers else {}
    return {"schema": SCHEMA, "gradscope": __version__, **parts, **layers}


def _parts(analysis: Analysis, all_lags: bool) -> dict[str, Any]:
    """What JSON tells of the whole, and of each layer."""
    full, levels, measured = analysis.full, analysis.levels, analysis.only != "verdict"
    shown = lags(full.steps, every=all_lags)
    return {
        "problem": dict(analysis.problem),
        "verdict": analysis.verdict.to_dict(),
        "thresholds": {
            "vanishing_below": analysis.policy.vanishing_below,
            "exploding_above": analysis.policy.exploding_above,
        },
        "chains": [
            _chain(chain, levels[chain.name], full.engine, shown if measured else None)
            for chain in analysis.chains
        ],
        "engine": full.engine,
        "matrices": [{"name": name, **_plain(matrix)} for name, matrix in analysis.matrices.items()],
        "profile": _profile(full, analysis.shares, all_lags) if measured else _NO_PROFILE,
        "shares": _plain(analysis.mean_shares),
        **_plain(_of_paths(analysis, all_lags)),
        "gates": _plain(analysis.gates),
        **_plain(_asked_for(analysis, shown)),
        **told_of(analysis.remedies),
    }


def _of_paths(analysis: Analysis, all_lags: bool) -> dict[str, Any]:
    """What there is where paths were measured."""
    found: dict[str, Any] = {}
    if analysis.sequence_shares:
        found["sequences"] = {"shares": analysis.sequence_shares, "shares_error": analysis.shares_error}
    if analysis.without:
        found["without"] = {
            name: _without(chain, analysis.levels[WITHOUT + name], all_lags)
            for name, chain in analysis.without.items()
        }
    return found | ({"returning": analysis.returning} if analysis.returning else {})


def _asked_for(analysis: Analysis, shown: Array) -> dict[str, Any]:
    """What is there where it was asked for, and a reason why not did not stand in its place."""
    found: dict[str, Any] = {}
    if analysis.loss is not None:
        found["loss"] = analysis.loss.to_dict(shown)
    if analysis.masks is not None:
        found["masks"] = analysis.masks.to_dict()
    if analysis.sensitivity is not None:
        found["sensitivity"] = analysis.sensitivity.to_dict()
    return found


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
