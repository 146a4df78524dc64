"""An Analysis in a file and back: the JSON that programs read, with what it leaves out beside it."""

from __future__ import annotations

import base64
import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.custom_types import PathLike
from gradscope.errors import InputError, about, quoted, reason
from gradscope.files import write_whole
from gradscope.report.json import SCHEMA, strict

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis

# What an Analysis is made of, and where that is. No other class is ever made from a file.
_HOME = {
    "Analysis": "gradscope.report.analysis",
    "Chain": "gradscope.report.chains",
    "Clipping": "gradscope.measure.clipping",
    "LossGradient": "gradscope.measure.loss",
    "MaskedGains": "gradscope.report.masked",
    "Matched": "gradscope.report.verdict",
    "Policy": "gradscope.settings",
    "Remedies": "gradscope.report.remedies",
    "Sensitivity": "gradscope.measure.sensitivity",
    "Spectrum": "gradscope.product_svd.spectrum",
    "Suggestion": "gradscope.report.remedies",
    "Truncation": "gradscope.measure.truncation",
    "Verdict": "gradscope.report.verdict",
}
_EXPECTED = "expected what Analysis.save has written"


def write_analysis(analysis: Analysis, path: PathLike) -> None:
    """Write the JSON of every lag, and under ``saved`` all that the analysis is made of."""
    told = {**analysis.to_dict(all_lags=True), "saved": _encoded(analysis)}
    write_whole(path, strict(told).encode())


def read_analysis(path: PathLike) -> Analysis:
    """The Analysis that ``write_analysis`` has written; raises InputError for any other file."""
    from gradscope.report.analysis import Analysis

    with about(path):
        try:
            told = json.loads(Path(path).read_text("utf-8"))
            if told.get("schema") != SCHEMA:
                raise InputError(f"schema is {quoted(told.get('schema'))}, expected {SCHEMA!r}")
            if "saved" not in told:
                raise InputError("is a result without what it is made of (--json, to_json): " + _EXPECTED)
            found = _decoded(told["saved"])
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{error.strerror}: {_EXPECTED}") from error
        except Exception as error:  # JSON, base64 and NumPy fail on bad text in a dozen ways
            raise InputError(f"damaged ({reason(error)}): {_EXPECTED}") from error
        if not isinstance(found, Analysis):
            raise InputError(f"holds no Analysis: {_EXPECTED}")
        return found


def _encoded(value: Any) -> Any:
    """As JSON has it: what JSON does not know is an object of one key that says what it is."""
    if is_dataclass(value) and type(value).__name__ in _HOME:
        parts = {field.name: _encoded(getattr(value, field.name)) for field in fields(value)}
        return {"class": [type(value).__name__, parts]}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {"array": [value.dtype.str, list(value.shape), data]}
    if isinstance(value, np.generic):
        return _encoded(value.item())
    if isinstance(value, Mapping):
        return {"mapping": [[key, _encoded(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item) for item in value]}
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _decoded(value: Any) -> Any:
    """What was encoded."""
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "class":
        name, parts = held
        made = getattr(importlib.import_module(_HOME[name]), name)
        return made(**{key: _decoded(item) for key, item in parts.items()})
    if kind == "array":
        dtype, shape, data = held
        if np.dtype(dtype).kind not in "fiub":
            raise InputError(f"holds an array of {quoted(dtype)}: {_EXPECTED}")
        return np.frombuffer(base64.b64decode(data, validate=True), dtype).reshape(shape).copy()
    if kind == "mapping":
        return {key: _decoded(item) for key, item in held}
    if kind == "tuple":
        return tuple(_decoded(item) for item in held)
    if kind == "float":
        return float(held)
    raise InputError(f"holds {quoted(kind)}: {_EXPECTED}")
