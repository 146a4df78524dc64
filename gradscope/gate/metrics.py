"""A number of an analysis by its name: what budgets are about, and what baselines and tracks keep.

A name is a quantity, and after a dot what it is of: ``log10_norm`` of the whole, ``horizon.carousel`` of a
path, ``share.R_o``, ``saturated.f`` of a gate; of a layer ``horizon.encoder.l0`` and
``log10_norm.encoder.l0.R_o``, where a layer is called by its name, the end of it, or layer0, layer1, ... as
the table does.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from gradscope.errors import InputError, listed, nearest_or_all, quoted
from gradscope.report.chains import horizon_error, known_norms
from gradscope.report.row_training import gradient_norm, gradient_norm_error, losses_of
from gradscope.settings import Only

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis
    from gradscope.report.chains import Chain


@dataclass(frozen=True)
class Metric:
    """One number of an analysis, for every sequence of its batch.

    quantity : what it is, a key of QUANTITIES; layer : of several the one it is of, None of the whole;
    part : the path or the gate, None of the full chain; values : one per sequence, or one of all of them;
    error : estimated, of the value that is worst known, in its own unit; None where nothing is known of it.
    """

    quantity: str
    layer: str | None
    part: str | None
    values: tuple[float, ...]
    error: float | None = None

    @property
    def name(self) -> str:
        """By which ``metric`` finds it."""
        return ".".join(filter(None, (self.quantity, self.layer, self.part)))

    @property
    def unit(self) -> str:
        """Of its values, "" where they are parts of 1."""
        return QUANTITIES[self.quantity].unit

    @property
    def median(self) -> float:
        """Of the sequences; NaN where it is known of none."""
        return float(np.median(self.values))

    @property
    def lowest(self) -> float:
        """Of the sequences."""
        return float(np.min(self.values))

    @property
    def highest(self) -> float:
        """Of the sequences."""
        return float(np.max(self.values))

    @classmethod
    def pooled(cls, same: Sequence[Metric]) -> Metric:
        """The same metric of several analyses, such as of several seeds, as if they were one batch."""
        errors = [one.error for one in same if one.error is not None]
        values = tuple(value for one in same for value in one.values)
        return replace(same[0], values=values, error=max(errors, default=None))


def metric(analysis: Analysis, name: str) -> Metric:
    """The metric of this name; raises InputError, with the names that there are, where there is none."""
    quantity, _, rest = name.partition(".")
    read = check_name(name).read
    for layer, of_layer, told in _places(analysis, rest):
        part = None if told == "full" else told
        if (found := read(of_layer, part)) is not None:
            values, error = found
            return Metric(quantity, layer, part, tuple(map(float, values)), error)
    raise InputError(f"no metric {quoted(name)} of this analysis: {_nearest(analysis, name)}")


def all_metrics(analysis: Analysis) -> list[Metric]:
    """Every metric of the analysis that is known, of the whole first, then of every layer."""
    own = {alias for alias, _, _ in _aliases(analysis)}  # the whole has its layers' chains by these names
    found = _of(analysis, None, own)
    for layer in analysis.layers:
        found += _of(layer, str(layer.problem["layer"]), set())
    return found


def check_name(name: str) -> Quantity:
    """The quantity that a name begins with; raises InputError, with the nearest, where there is none such."""
    quantity = name.partition(".")[0]
    if quantity not in QUANTITIES:
        raise InputError(f"no metric {quoted(name)}{nearest_or_all(quantity, QUANTITIES)}")
    return QUANTITIES[quantity]


def least(names: Collection[str]) -> Only:
    """The least that an analysis has to measure for metrics of these names, as ``analyze`` calls it."""
    order: tuple[Only, ...] = get_args(Only)
    of_parts: list[Only] = ["paths" for name in names if "." in name]
    return max([*of_parts, *(check_name(name).needs for name in names)], key=order.index, default="verdict")


# -- where a name points to --------------------------------------------------------------------------


def _places(analysis: Analysis, rest: str) -> Iterable[tuple[str | None, Analysis, str | None]]:
    """(layer, the analysis it is found in, part) that the rest of a name may mean, the likeliest first."""
    yield None, analysis, rest or None
    for alias, layer, of_layer in sorted(_aliases(analysis), key=lambda one: -len(one[0])):
        if rest == alias or rest.startswith(f"{alias}."):
            yield layer, of_layer, rest[len(alias) + 1 :] or None


def _aliases(analysis: Analysis) -> list[tuple[str, str | None, Analysis]]:
    """(what a layer may be called, its name, its analysis); what would be said of two of them is of none."""
    layers = analysis.layers or ((analysis,) if analysis.problem.get("layer") else ())
    found: dict[str, list[tuple[str | None, Analysis]]] = {}
    for number, layer in enumerate(layers):
        name = str(layer.problem["layer"])
        said = name if analysis.layers else None  # of a single layer the whole is it
        words = name.split(".")
        for alias in {f"layer{number}", *(".".join(words[k:]) for k in range(len(words)))}:
            found.setdefault(alias, []).append((said, layer))
    return [(alias, *places[0]) for alias, places in found.items() if len(places) == 1]


def _of(analysis: Analysis, layer: str | None, left_out: set[str]) -> list[Metric]:
    chains = [chain.name for chain in analysis.chains[1:] if chain.name not in left_out]
    parts: dict[str, Sequence[str | None]] = {
        "share": list(analysis.sequence_shares),
        "saturated": list(analysis.gates),
    }
    found = []
    for quantity, one in QUANTITIES.items():
        for part in parts.get(quantity, [None, *chains] if one.of_chains else [None]):
            if (known := one.read(analysis, part)) is not None:
                values, error = known
                found.append(Metric(quantity, layer, part, tuple(map(float, values)), error))
    return found


def _nearest(analysis: Analysis, name: str) -> str:
    known = [one.name for one in all_metrics(analysis)]
    order = get_args(Only)
    missing = order.index(least([name])) > order.index(analysis.only)
    less = f" (only = {analysis.only!r} measures no more)" if missing else ""
    if name in QUANTITIES and (ask := QUANTITIES[name].asked_by):
        return f"give {ask}{less}"
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(near)}?{less}"
    quantity = name.partition(".")[0]
    of_it = [one for one in known if one.partition(".")[0] == quantity]
    return f"expected {listed(of_it or known)}{less}"


# -- the quantities ----------------------------------------------------------------------------------

Found = tuple[Sequence[float], float | None]


def _chain(analysis: Analysis, name: str | None) -> Chain | None:
    return next((one for one in analysis.chains if one.name == (name or "full")), None)


def _of_chain(
    read: Callable[[Chain, Analysis], Found | None],
) -> Callable[[Analysis, str | None], Found | None]:
    def find(analysis: Analysis, name: str | None) -> Found | None:
        chain = _chain(analysis, name)
        return None if chain is None else read(chain, analysis)

    return find


def _norm(chain: Chain, _: Analysis) -> Found:
    return [float(s.log10_singular_values[0]) for s in chain.spectra], _error(chain)


def _rate(chain: Chain, analysis: Analysis) -> Found:
    norms, error = _norm(chain, analysis)
    lengths = chain.lengths
    rates = [norm * math.log(10) / steps for norm, steps in zip(norms, lengths, strict=True)]
    return rates, None if error is None else error * math.log(10) / min(lengths)


def _horizon(chain: Chain, analysis: Analysis) -> Found:
    """Its error is how far it moves where the gain is as far off as its estimate says."""
    error = _error(chain)
    if error is None:
        return chain.horizons, None
    threshold = analysis.policy.vanishing_below
    return chain.horizons, float(max(horizon_error(s, threshold, error) for s in chain.spectra))


def _largest_gain(chain: Chain, analysis: Analysis) -> Found | None:
    if analysis.only == "verdict":
        return None
    known = [(float(np.max(known_norms(s)[1])), s.log10_largest_gain) for s in chain.spectra]
    return [at_lag if other is None else max(at_lag, other) for at_lag, other in known], _error(chain)


def _error(chain: Chain) -> float | None:
    error = float(chain.log10_norm_error)
    return error if math.isfinite(error) else None


def _share(analysis: Analysis, path: str | None) -> Found | None:
    """Of every sequence through which anything gets."""
    if path is None or path not in analysis.sequence_shares:
        return None
    each = analysis.sequence_shares[path]
    known = np.isfinite(each)
    errors = analysis.shares_error[known]
    certain = len(errors) and not np.isnan(errors).any()
    return each[known].tolist() or [math.nan], float(errors.max()) if certain else None


def _saturated(analysis: Analysis, gate: str | None) -> Found | None:
    """Of one gate; without a gate of the one, of all layers, that is saturated most.

    It is counted along the states as they were computed, so its error is what the rounding of an activation
    may put on the wrong side of a threshold.
    """
    if gate is None:
        some = [one for part in (analysis, *analysis.layers) for one in part.gates.values()]
    else:
        some = [analysis.gates[gate]] if gate in analysis.gates else []
    some = [one for one in some if "sequences" in one]  # an analysis saved before them has none
    if not some:
        return None
    values = np.max([one["sequences"]["saturated"] for one in some], axis=0)
    return values.tolist(), max(one["saturated_error"] for one in some)


def _gradient(analysis: Analysis, part: str | None) -> Found | None:
    """Norm of a loss's gradient by all parameters, of all sequences together."""
    losses = losses_of(analysis)
    return ([gradient_norm(losses)], gradient_norm_error(losses)) if losses and part is None else None


def _clip_factor(analysis: Analysis, part: str | None) -> Found | None:
    """What clipping leaves of every sequence's gradient, 1 where it does not act."""
    clip = analysis.loss.clip if analysis.loss else None
    return None if clip is None or part is not None else (clip.factor.tolist(), clip.factor_error)


def _tbptt_bias(analysis: Analysis, part: str | None) -> Found | None:
    """What truncation takes of the gradient of the recurrent matrices, of all sequences together."""
    tbptt = analysis.loss.tbptt if analysis.loss else None
    if tbptt is None or part is not None:
        return None
    error = tbptt.error_of(tbptt.main)
    return [tbptt.at(tbptt.main)[0]], None if error is None or math.isnan(error) else error


def _of_masks(
    read: Callable[[Chain, Analysis], Found | None],
) -> Callable[[Analysis, str | None], Found | None]:
    """Of every sequence and every mask that was drawn for it."""

    def find(analysis: Analysis, part: str | None) -> Found | None:
        return None if analysis.masks is None or part is not None else read(analysis.masks.drawn, analysis)

    return find


@dataclass(frozen=True)
class Quantity:
    """What can be measured.

    unit : "" where it is a part of 1; needs : what there is to measure for it; read : of an analysis, or of a
    part of it; of_chains : whether it is of every path too; asked_by : the options that have it measured.
    """

    unit: str
    needs: Only
    read: Callable[[Analysis, str | None], Found | None]
    of_chains: bool = False
    asked_by: str = ""


_LOSS = "a loss by readout or adjoint"
_MASKS = "masks by h_detach, recurrent_dropout or zoneout"


QUANTITIES: Mapping[str, Quantity] = {
    "log10_norm": Quantity("decades", "verdict", _of_chain(_norm), of_chains=True),
    "rate": Quantity("nats per step", "verdict", _of_chain(_rate), of_chains=True),
    "horizon": Quantity("steps", "gain", _of_chain(_horizon), of_chains=True),
    "log10_largest_gain": Quantity("decades", "gain", _of_chain(_largest_gain), of_chains=True),
    "share": Quantity("", "paths", _share),
    "saturated": Quantity("", "all", _saturated),
    "log10_gradient": Quantity("decades", "all", _gradient, asked_by=_LOSS),
    "clip_factor": Quantity("", "all", _clip_factor, asked_by=f"clip, and {_LOSS}"),
    "tbptt_bias": Quantity("", "all", _tbptt_bias, asked_by=f"tbptt, and {_LOSS}"),
    "masked_log10_norm": Quantity("decades", "all", _of_masks(_norm), asked_by=_MASKS),
    "masked_rate": Quantity("nats per step", "all", _of_masks(_rate), asked_by=_MASKS),
    "masked_horizon": Quantity("steps", "all", _of_masks(_horizon), asked_by=_MASKS),
}
