"""What was measured once, to be compared with: a small JSON file, a metric a line; and any other result."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradscope.errors import InputError, about, quoted, reason
from gradscope.gate.metrics import QUANTITIES, Metric, all_metrics
from gradscope.report.analysis import Analysis
from gradscope.report.json import SCHEMA as ANALYSIS
from gradscope.report.numbers import log10_norm_error_of, log10_norm_of
from gradscope.version import __version__

SCHEMA = "gradscope/baseline/1"
# Digits of a value that are kept: the last of a float64 depend on the machine.
_DIGITS = 10
# Of a problem, what its numbers depend on.
_COMPARED = (
    *("accuracy", "backend", "batch", "biases", "cell", "cut", "direction", "dtype", "embedding", "gain"),
    *("hidden", "init", "initial_state", "input_size", "inputs", "jacobians", "seed", "size", "steps"),
    *("top", "view"),
)
_FILES = {"inputs", "initial_state"}
# More than the JSON of every lag of a thousand layers.
_MAX_BYTES = 2**28
_EXPECTED = "expected a baseline, an analysis (--json, Analysis.save) or a checkpoint"


@dataclass(frozen=True)
class Entry:
    """What was measured of one problem.

    gradscope : the version that did; problem : what the numbers depend on; metrics : by their names, of which
    a file keeps the lowest value, the median and the highest.
    """

    gradscope: str
    problem: Mapping[str, Any]
    metrics: Mapping[str, Metric]


def entry_of(analyses: Sequence[Analysis]) -> Entry:
    """Of one analysis, or of several that differ in their seed, as one batch."""
    every = [{one.name: one for one in all_metrics(analysis)} for analysis in analyses]
    pooled = {name: Metric.pooled([each[name] for each in every if name in each]) for name in every[0]}
    first = analyses[0]
    problem = _compared(first.problem, first.policy.vanishing_below)
    if len(analyses) > 1:
        problem["seed"] = [analysis.problem.get("seed") for analysis in analyses]
    return Entry(__version__, problem, pooled)


def _compared(problem: Mapping[str, Any], vanishing_below: Any) -> dict[str, Any]:
    known = {name: problem[name] for name in _COMPARED if problem.get(name) not in (None, [], {})}
    for name in _FILES & known.keys():  # where it stands is another on every machine
        known[name] = Path(str(known[name])).name
    return known | {"vanishing_below": vanishing_below}


# -- files ---------------------------------------------------------------------------------------------


def baseline_text(entries: Mapping[str, Entry]) -> str:
    """The file: sorted, a metric a line, so that a difference between two of them is what has changed."""
    analyses = ",\n".join(f"  {json.dumps(name)}: {_entry_text(entries[name])}" for name in sorted(entries))
    head = (
        f'{{\n "schema": {json.dumps(SCHEMA)},\n "gradscope": {json.dumps(__version__)},\n "analyses": {{\n'
    )
    return f"{head}{analyses}\n }}\n}}\n"


def _entry_text(entry: Entry) -> str:
    told = entry_told(entry)
    texts = [
        f'   "{part}": {{\n'
        + ",\n".join(
            f"    {json.dumps(name)}: {json.dumps(one, sort_keys=part == 'problem')}"
            for name, one in told[part].items()
        )
        + "\n   }"
        for part in ("problem", "metrics")
    ]
    return "{\n" + ",\n".join([*texts, f'   "layers": {json.dumps(told["layers"])}']) + "\n  }"


def entry_told(entry: Entry) -> dict[str, Any]:
    """An entry as JSON knows it, sorted."""
    kept = {name: one for name, one in entry.metrics.items() if not math.isnan(one.median)}
    return {
        "problem": {name: entry.problem[name] for name in sorted(entry.problem)},
        "metrics": {name: _told(kept[name]) for name in sorted(kept)},
        "layers": sorted({one.layer for one in kept.values() if one.layer}),
    }


def _told(one: Metric) -> dict[str, float | None]:
    """Value, error and spread; None is minus infinity, of what is exactly zero."""
    told: dict[str, float | None] = {"value": _rounded(one.median)}
    if one.error is not None and math.isfinite(one.error):
        told["error"] = float(f"{one.error:.1e}")
    if one.lowest != one.highest:
        told |= {"lowest": _rounded(one.lowest), "highest": _rounded(one.highest)}
    return told


def _rounded(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 2**53 else rounded


def read_entries(path: Path) -> dict[str, Entry] | None:
    """{name: Entry} of a baseline, or of one analysis as JSON; None where it is a file of another kind."""
    with about(path):
        try:
            with path.open("rb") as file:
                if not file.read(64).lstrip().startswith(b"{"):
                    return None
            if path.stat().st_size > _MAX_BYTES:
                raise InputError(f"is over {_MAX_BYTES // 2**20} MiB of JSON, {_EXPECTED}")
            told = json.loads(path.read_text("utf-8"))
            known = {SCHEMA: _of_baseline, ANALYSIS: _of_analysis}
            if told.get("schema") not in known:
                raise InputError(f"schema is {quoted(told.get('schema'))}, {_EXPECTED}")
            return known[told["schema"]](told)
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{error.strerror}: {_EXPECTED}") from error
        except Exception as error:  # a stranger's JSON may be anything
            raise InputError(f"damaged ({reason(error)}): {_EXPECTED}") from error


def _of_baseline(told: Mapping[str, Any]) -> dict[str, Entry]:
    version = str(told["gradscope"])
    return {str(name): entry_from(entry, version) for name, entry in told["analyses"].items()}


def entry_from(told: Mapping[str, Any], version: str) -> Entry:
    """From what ``entry_told`` has told; version : of the program that has."""
    metrics = [_read(key, one, told["layers"]) for key, one in told["metrics"].items()]
    return Entry(version, dict(told["problem"]), {one.name: one for one in metrics})


def _read(name: str, told: Mapping[str, Any], layers: Iterable[str]) -> Metric:
    """A metric of a baseline, in whose name its layer, if it is one's, is the longest that fits."""
    quantity, _, rest = name.partition(".")
    of = [layer for layer in layers if rest == layer or rest.startswith(f"{layer}.")]
    layer = max(of, key=len, default=None)
    part = rest if layer is None else rest[len(layer) + 1 :]
    value = _number(told["value"])
    values = [_number(told.get("lowest", value)), value, _number(told.get("highest", value))]
    error = told.get("error", 0.0 if QUANTITIES[quantity].of_chains else None)
    return Metric(quantity, layer, part or None, tuple(values), None if error is None else float(error))


def _number(told: Any) -> float:
    return -math.inf if told is None else float(told)


def _of_analysis(told: Mapping[str, Any]) -> dict[str, Entry]:
    """The one entry of what ``Analysis.to_dict`` has told."""
    below = told["thresholds"]["vanishing_below"]
    metrics = [*_in_json(told, None)]
    for layer in told.get("layers", ()):
        metrics += _in_json(layer, str(layer["problem"]["layer"]))
    whole = {f"layer{number}" for number in range(len(told.get("layers", ())))}
    kept = {one.name: one for one in metrics if one.layer or one.part not in whole or one.quantity == "share"}
    return {"": Entry(str(told["gradscope"]), _compared(told["problem"], below), kept)}


def _in_json(told: Mapping[str, Any], layer: str | None) -> Iterator[Metric]:
    steps = min(told["problem"].get("lengths") or [told["problem"]["steps"]])
    for chain in told["chains"]:
        part = None if chain["name"] == "full" else str(chain["name"])
        error = max(map(_number, chain["log10_norm_error"]))
        per = {"log10_norm": 1.0, "log10_largest_gain": 1.0, "rate": math.log(10) / steps}
        for quantity in (name for name, one in QUANTITIES.items() if one.of_chains and name in chain):
            values = tuple(_number(chain[quantity][which]) for which in ("min", "median", "max"))
            yield Metric(quantity, layer, part, values, error * per[quantity] if quantity in per else None)
    yield from _shares_in_json(told, layer)
    for gate, one in told["gates"].items():
        each = one.get("sequences", one)["saturated"]
        values = tuple(map(float, each if isinstance(each, list) else [each]))
        yield Metric("saturated", layer, str(gate), values, _known(one.get("saturated_error")))
    yield from _loss_in_json(told, layer)
    if masks := told.get("masks"):
        yield from _masks_in_json(masks, layer, steps)


def _loss_in_json(told: Mapping[str, Any], layer: str | None) -> Iterator[Metric]:
    parts = [told] if told.get("loss") else told.get("layers", ())
    losses = [part["loss"] for part in parts if part.get("loss")]
    each = [one for loss in losses for one in loss["gradients"]]
    if norms := [_number(one["log10_norm"]) for one in each]:
        error = log10_norm_error_of(norms, [_known(one.get("log10_error")) for one in each])
        yield Metric("log10_gradient", layer, None, (log10_norm_of(norms),), error)
    if clip := told.get("loss", {}).get("clip"):
        factors = tuple(map(float, clip["sequences"]["factor"]))
        yield Metric("clip_factor", layer, None, factors, _known(clip.get("factor_error")))
    tbptt = told.get("loss", {}).get("tbptt")
    if tbptt and tbptt["bias"] is not None:
        yield Metric("tbptt_bias", layer, None, (float(tbptt["bias"]),), _known(tbptt.get("bias_error")))


def _masks_in_json(masks: Mapping[str, Any], layer: str | None, steps: int) -> Iterator[Metric]:
    """Of results that are older the error and the rate are not known."""
    error = _known(masks.get("log10_norm_error"))
    norms = tuple(_number(one) for row in masks["log10_norms"] for one in row)
    yield Metric("masked_log10_norm", layer, None, norms, error)
    of_rate = None if error is None else error * math.log(10) / steps
    for quantity, known in (("rate", of_rate), ("horizon", None)):
        if one := masks.get(quantity):
            values = tuple(_number(one[which]) for which in ("min", "median", "max"))
            yield Metric(f"masked_{quantity}", layer, None, values, known)


def _shares_in_json(told: Mapping[str, Any], layer: str | None) -> Iterator[Metric]:
    """Of every sequence; of what was written before they were told apart, their mean."""
    each = told.get("sequences", {"shares": {path: [one] for path, one in told["shares"].items()}})
    for path, values in each["shares"].items():
        known = [number for number, value in enumerate(values) if value is not None]
        errors = [_known(each["shares_error"][number]) for number in known if "shares_error" in each]
        certain = [one for one in errors if one is not None]
        error = max(certain) if certain and len(certain) == len(errors) else None
        if known:
            yield Metric("share", layer, str(path), tuple(float(values[number]) for number in known), error)


def _known(told: Any) -> float | None:
    return None if told is None else float(told)
