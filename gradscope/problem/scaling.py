"""Factors on paths: ``R_*=0.75`` as the factor of every path that it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from gradscope.errors import InputError, as_option, listed, quoted
from gradscope.problem.checks import real

Scale = Mapping[str, float]


def scale_of(given: str | Sequence[str] | Mapping[str, float] | None) -> Scale:
    """{pattern: factor} of what was given, each "PATTERN=FACTOR" or a mapping already."""
    if isinstance(given, Mapping):
        return {str(pattern): real(_called(pattern), factor) for pattern, factor in given.items()}
    return dict(map(_rule, (given,) if isinstance(given, str) else given or ()))


def _rule(text: Any) -> tuple[str, float]:
    pattern, equals, factor = str(text).rpartition("=")
    try:
        return pattern, real(_called(pattern), float(factor) if equals else None)
    except ValueError:
        raise InputError(
            f"{as_option('scale')} is {quoted(text)}, expected PATH=FACTOR such as R_*=0.75"
        ) from None


def _called(pattern: Any) -> str:
    return f"{as_option('scale')} {pattern}"


def factors_of(scale: Scale, paths: Iterable[str]) -> dict[str, float]:
    """The factor of every path that a pattern names; where several do, that of the last."""
    found: dict[str, float] = {}
    for path in paths:
        for pattern, factor in scale.items():
            if names(pattern, path):
                found[path] = factor
    return found


def check_names(scale: Scale, paths: Sequence[str], called: str) -> None:
    """Raise InputError for a pattern that names none of the paths."""
    for pattern in scale:
        if not any(names(pattern, path) for path in paths):
            has = f"it has {listed(paths)}" if paths else "it has no named paths"
            raise InputError(f"{as_option('scale')} {quoted(pattern)}: not a path of {called}: {has}")


def names(pattern: str, path: str) -> bool:
    """Whether the pattern (``*``, ``?`` and ``[...]`` as of files) names the path."""
    return pattern == path or fnmatchcase(path, pattern)
