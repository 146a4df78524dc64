"""A checkpoint as a row: what is kept of its analysis, and the key by which it is known again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradscope.errors import GradscopeError, InputError, shown
from gradscope.gate.budgets import Check, MetricBudget, judge_budget
from gradscope.gate.metrics import metric
from gradscope.report.analysis import Analysis
from gradscope.settings import Settings, option_of
from gradscope.track.journal import SCHEMAS, Row
from gradscope.version import __version__

_CHUNK = 2**20
# What is no question: the same is found however it is asked.
_NO_QUESTION = ("checkpoint", "platform", "devices", "progress", "plan")


def key_of(checkpoint: Path, settings: Mapping[str, Any], light: bool) -> str:
    """By which a row is known: a hash of the checkpoint, of what is asked, of the files that are named there.

    Raises InputError where the checkpoint cannot be read.
    """
    digest = hashlib.sha256(_hashed(checkpoint))
    asked = {name: value for name, value in settings.items() if name not in _NO_QUESTION}
    told = {
        "version": __version__,
        "light": light,
        **{name: _told(name, asked[name]) for name in sorted(asked)},
    }
    digest.update(json.dumps(told, sort_keys=True, default=str).encode("utf-8"))
    return digest.hexdigest()[:32]


def _told(name: str, value: Any) -> Any:
    """A value, with a hash of what is in the file that it names."""
    field = Settings.__dataclass_fields__.get(name)
    if field is None or not option_of(field).reads or value is None:
        return value
    each = value if isinstance(value, tuple | list) else [value]
    return [[str(one), _content(str(one))] for one in each]


def _content(name: str) -> str | None:
    from gradscope.formats.numpy_files import split_key

    path = Path(split_key(name)[0])
    try:
        return _hashed(path).hex() if path.is_file() else None
    except (OSError, ValueError, InputError):  # a rule that is too long for a name
        return None


def _hashed(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            raise InputError(f"{shown(path)}: is a directory, expected a checkpoint")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{shown(path)}: {error.strerror}") from error
    return digest.digest()


def row_of(analysis: Analysis, budgets: Sequence[MetricBudget], light: bool) -> Row:
    """What a row keeps of an analysis: medians over its sequences; what is not finite is None."""
    full = analysis.full
    gates = [(name, gate) for one in (analysis, *analysis.layers) for name, gate in one.gates.items()]
    found: Row = {
        "log10_norm": _finite(full.log10_norm.median),
        "log10_norm_error": _finite(full.log10_norm_error),
        "rate": _finite(full.rate.median),
        "horizon": full.horizon.median,
        "steps": full.steps,
        "sequences": len(full.spectra),
        "log10_largest_gain": _finite(full.log10_largest_gain.median),
        "verdict": analysis.verdict.level,
        "notes": list(analysis.verdict.notes),
    }
    if light:
        found["converged"] = bool(full.log10_norm_error < CONVERGED)
    if analysis.shares:
        found["shares"] = {name: _finite(share) for name, share in analysis.mean_shares.items()}
    if gates:
        found["saturated"] = max(gate["saturated"] for _, gate in gates)
    if budgets:
        found["checks"] = [_judged(analysis, budget).to_dict() for budget in budgets]
    return found


# Decades that passes and rounding may still move the gain of a light probe by, where it is called converged.
CONVERGED = 1e-6


def row_about(checkpoint: str, index: int, of: int, key: str | None, measured: Row) -> Row:
    """A row with what it is about; index, of : its place among all that were asked for."""
    about = {"schema": SCHEMAS[0], "gradscope": __version__, "checkpoint": checkpoint}
    return {**about, "index": index, "of": of, "key": key, **measured}


def row_of_error(error: GradscopeError) -> Row:
    """Of a checkpoint that could not be measured."""
    nothing = dict.fromkeys(("log10_norm", "rate", "horizon", "verdict"))
    return {**nothing, "error": error.in_shell}


def _judged(analysis: Analysis, budget: MetricBudget) -> Check:
    name = str(analysis.problem.get("source") or "")
    try:
        return judge_budget(name, budget, metric(analysis, budget.metric))
    except InputError as error:
        return Check(name, budget, None, failure=error.in_shell)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
