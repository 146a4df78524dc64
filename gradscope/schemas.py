"""The JSON Schemas of what gradscope writes as JSON, each a file of the package."""

from __future__ import annotations

import json
from functools import reduce
from importlib import resources
from typing import Any

from gradscope.errors import InputError, did_you_mean, listed, quoted

# Name -> the package and file that it is in (after # the place within it), and what has it.
SCHEMAS = {
    "analysis": (
        "gradscope.report",
        "analysis.schema.json",
        "analyze --json, chain --json, Analysis.to_dict",
    ),
    "analysis-line": ("gradscope.report", "line.schema.json", "a line of analyze --format jsonl"),
    "baseline": ("gradscope.gate", "baseline.schema.json", "a file of --write-baseline"),
    "checks": ("gradscope.gate", "checks.schema.json", "check --json"),
    "checks-line": (
        "gradscope.gate",
        "checks.schema.json#properties/checks/items",
        "a line of check --format jsonl",
    ),
    "bmf": ("gradscope.gate", "bmf.schema.json", "--format bmf"),
    "benchmark": ("gradscope.gate", "benchmark.schema.json", "--format benchmark"),
    "comparison": ("gradscope.gate", "comparison.schema.json", "compare --json"),
    "comparison-line": (
        "gradscope.gate",
        "comparison.schema.json#properties/changes/items",
        "a line of compare --format jsonl",
    ),
    "config": ("gradscope.cli", "config.schema.json", "config --json"),
    "repair": ("gradscope.advise", "repair.schema.json", "repair --json, Repaired.to_dict"),
    "suggestions": ("gradscope.advise", "suggestions.schema.json", "suggest --json, Suggestions.to_dict"),
    "inspection": ("gradscope.report", "inspection.schema.json", "inspect --json"),
    "check": ("gradscope.track", "check.schema.json", "a row of check --shard: an analysis"),
    "tracked": (
        "gradscope.track",
        "tracked.schema.json",
        "track --json, merge --json of its rows",
    ),
    "swept": ("gradscope.grid", "swept.schema.json", "sweep --json, merge --json of its rows"),
    "sweep": ("gradscope.grid", "sweep.schema.json", "a row of sweep --format jsonl, and of merge"),
    "track": ("gradscope.track", "track.schema.json", "a row of track --format jsonl, and of merge"),
}
# Of these the parts that are alike, as "$defs", are in a file of their own.
_ROWS = ("sweep", "track")
_PARTS_OF_ROWS = ("gradscope.report", "parts_of_rows.json")


def schema(name: str = "analysis") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one kind of output; raises InputError for an unknown name.

    name : "analysis" for what ``Analysis.to_dict`` returns; ``gradscope schema`` lists the others. What
        stands in the output itself, such as "gradscope/analysis/1", is that schema's name too.
    """
    plain = name.removeprefix("gradscope/").rpartition("/")[0] or name
    if plain not in SCHEMAS:
        hint = did_you_mean(plain, SCHEMAS) or f", expected one of {listed(sorted(SCHEMAS), most=20)}"
        raise InputError(f"no schema is called {quoted(name)}{hint}")
    found = _read(*SCHEMAS[plain][:2])
    return {**found, "$defs": _read(*_PARTS_OF_ROWS)} if plain in _ROWS else found


def _read(package: str, file: str) -> dict[str, Any]:
    file, _, place = file.partition("#")
    found: dict[str, Any] = json.loads(resources.files(package).joinpath(file).read_text("utf-8"))
    if not place:
        return found
    part = reduce(lambda inner, name: inner[name], place.split("/"), found)
    return {"$schema": found["$schema"], **part}
