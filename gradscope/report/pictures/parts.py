"""Numbers of a result's JSON as arrays, and its layers by their names."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option, did_you_mean, listed, quoted, reason


@contextlib.contextmanager
def _laid_to(what: str, expected: str) -> Iterator[None]:
    """Within, what fails is laid to what is drawn, and becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{what} is damaged ({reason(error)}): expected {expected}") from error


def of_result() -> AbstractContextManager[None]:
    """Within, what fails is laid to the JSON, and becomes an InputError."""
    return _laid_to("the result", "the JSON as analyze or chain wrote it")


def of_rows() -> AbstractContextManager[None]:
    """The same of rows."""
    return _laid_to("a row", "rows as sweep or track wrote them")


def floats(values: Sequence[float | None]) -> Array:
    """(n,), NaN for null and for what is beyond float64."""
    found = np.array(values, np.float64)
    if found.ndim != 1:
        raise ValueError(f"got {found.ndim} axes of numbers, expected one")
    return np.where(np.isfinite(found), found, np.nan)


def median(rows: Sequence[Sequence[float | None]]) -> Array:
    """(n,), the median of those that are not null; NaN where all are."""
    found = np.array([floats(row) for row in rows])
    known = np.isfinite(found)
    some = known.any(axis=0)
    middle = np.full(found.shape[1], np.nan)
    middle[some] = np.nanmedian(found[:, some], axis=0)
    return middle


def sentence(part: Mapping[str, Any]) -> str:
    """The verdict and its first reason."""
    verdict = part["verdict"]
    return " ".join([f"{str(verdict['level']).capitalize()}.", *map(str, verdict["reasons"][:1])])


def chains_of(part: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The full chain and its paths; where there is one path alone it is the full chain, and left out."""
    chains: Sequence[Mapping[str, Any]] = part["chains"]
    return chains if len(chains) > 2 else chains[:1]


def by_share(part: Mapping[str, Any]) -> dict[str, float]:
    """{path: share} from the largest to the smallest, NaN where it is not known."""
    shares = {name: math.nan if share is None else float(share) for name, share in part["shares"].items()}
    return dict(sorted(shares.items(), key=lambda one: -abs(np.nan_to_num(one[1]))))


def colours_of(part: Mapping[str, Any]) -> dict[str, int]:
    """{path: its colour}, the same in every picture: 1 for what carries most; 0 is the full chain's."""
    names = dict.fromkeys([*by_share(part), *(chain["name"] for chain in part["chains"][1:])])
    return {name: place for place, name in enumerate(names, 1)}


def parts_of(result: Mapping[str, Any], layer: str | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, part) of the whole, "", and of each layer; or of that layer alone, by its name or as layer0."""
    layers = result.get("layers") or []
    if layer is None:
        yield "", result
        yield from ((str(one["problem"]["layer"]), one) for one in layers)
        return
    named: dict[str, Mapping[str, Any]] = {}
    for place, one in enumerate(layers or [result]):
        named.setdefault(str(one["problem"].get("layer")), one)
        named.setdefault(f"layer{place}", one)
    if layer not in named:
        known = [name for name in named if name != "None"]
        hint = did_you_mean(layer, known) or f", expected one of {listed(known)}"
        raise InputError(f"{as_option('layer')} is {quoted(layer)}{hint}")
    yield layer, named[layer]
