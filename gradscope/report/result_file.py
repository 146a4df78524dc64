"""The JSON of an analysis, as --json, to_json or save have written it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from gradscope.custom_types import PathLike
from gradscope.errors import InputError, about, quoted, reason
from gradscope.report.json import SCHEMA

# Bytes of a file: an analysis of every lag of a long sequence has some ten million.
_LARGEST = 2**29
_EXPECTED = "expected the JSON of gradscope analyze --json or chain --json, or of Analysis.save"


def read_result(path: PathLike) -> dict[str, Any]:
    """The JSON object in a file, "-" is stdin; raises InputError for any other file."""
    with about("stdin" if str(path) == "-" else path):
        try:
            text = _text(path)
            told = json.loads(text, parse_constant=_no_constant)
        except (OSError, ValueError, RecursionError) as error:
            said = getattr(error, "strerror", None) or reason(error)
            raise InputError(f"{said}: {_EXPECTED}") from error
        if not isinstance(told, dict) or told.get("schema") != SCHEMA:
            schema = told.get("schema") if isinstance(told, dict) else None
            raise InputError(f"schema is {quoted(schema)}, not {SCHEMA!r}: {_EXPECTED}")
        told.pop("saved", None)
        return told


def _text(path: PathLike) -> str:
    if str(path) == "-":
        data = sys.stdin.buffer.read(_LARGEST + 1)
    else:
        with Path(path).open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise InputError(f"is larger than {_LARGEST >> 20} MiB: {_EXPECTED}")
    return data.decode("utf-8")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
