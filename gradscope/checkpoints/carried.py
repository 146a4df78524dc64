"""Calls of a module of any framework, and the state that passes from one to the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradscope.errors import InputError

# Where in what a module is given or puts out a tensor is: indices, keys.
Place = tuple[Any, ...]
# Of what is given and put out; and tensors that the module keeps itself, by their names.
ARGUMENTS, OUTPUT, KEPT = "arguments", "output", "kept"
BETWEEN = (
    "is called {} times in the forward pass, and {} given to the next as it is: expected a state that passes "
    "from call to call (what is done to it in between, as a mask does, belongs into the module)"
)


def leaves(value: Any, is_tensor: Callable[[Any], bool], place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The tensors within tuples, lists and mappings, each with its place."""
    if is_tensor(value):
        yield place, value
    elif isinstance(value, Mapping):
        for key in value:
            yield from leaves(value[key], is_tensor, (*place, key))
    elif isinstance(value, tuple | list) and not hasattr(value, "batch_sizes"):  # no PackedSequence
        for key, part in enumerate(value):
            yield from leaves(part, is_tensor, (*place, key))


def placed(value: Any, tensors: Mapping[Place, Any], place: Place = ()) -> Any:
    """A value with these tensors at their places; what is not a mapping there becomes a tuple or a dict."""
    if place in tensors:
        return tensors[place]
    inside = [where for where in tensors if where[: len(place)] == place]
    if not inside:
        return value
    keys = list(dict.fromkeys(where[len(place)] for where in inside))
    if isinstance(value, Mapping) or any(isinstance(key, str) for key in keys):
        old = dict(value) if isinstance(value, Mapping) else {}
        return old | {key: placed(old.get(key), tensors, (*place, key)) for key in keys}
    parts = list(value) if isinstance(value, tuple | list) else []
    parts += [None] * (max(keys) + 1 - len(parts))
    parts = [placed(part, tensors, (*place, key)) for key, part in enumerate(parts)]
    if hasattr(value, "_fields"):
        return type(value)(*parts)
    return parts if isinstance(value, list) else tuple(parts)


@dataclass(frozen=True)
class StepCall:
    """One call of a module.

    arguments : (positional, {by name}), as it was called; given, made : copies of the tensors in it, before,
        and of those put out, after, by place; passed : places of what is put out that it was given as it is.
    """

    arguments: tuple[Any, Any]
    given: Mapping[Place, Any]
    made: Mapping[Place, Any]
    passed: frozenset[Place] = frozenset()


@dataclass(frozen=True)
class Carried:
    """The state that passes from call to call.

    sources : where the parts of the state are put out, in that order; places : {where it is given: which}.
    """

    sources: tuple[Place, ...]
    places: Mapping[Place, int]


def carried(calls: Sequence[StepCall], same: Callable[[Any, Any], bool]) -> Carried:
    """The state: what every call is given as the call before put it out.

    Raises InputError where nothing passes so from each call to the next.
    """
    found: dict[Place, Place] = {}
    pairs = list(itertools.pairwise(calls))
    passed = set.intersection(*(set(call.passed) for call in calls))
    for place in _common([call.given for call in calls[1:]]):
        for source in _common([call.made for call in calls[:-1]]):
            if source not in passed and all(same(two.given[place], one.made[source]) for one, two in pairs):
                found[place] = source
                break
    if not found:
        raise InputError(BETWEEN.format(len(calls), "nothing that a call puts out is"))
    sources = tuple(dict.fromkeys(found.values()))
    return Carried(sources, {place: sources.index(source) for place, source in found.items()})


def _common(mappings: Sequence[Mapping[Place, Any]]) -> list[Place]:
    """The places that all of them have."""
    first, *others = mappings
    return [place for place in first if all(place in other for other in others)]


def started(calls: Sequence[StepCall], state: Carried, zeros: Callable[[Any], Any]) -> list[StepCall]:
    """The calls, of which the first may have been given no state: it is given zeros then."""
    first = calls[0]
    missing = {
        place: zeros(first.made[state.sources[part]])
        for place, part in state.places.items()
        if place not in first.given and state.sources[part] in first.made
    }
    return [replace(first, given={**first.given, **missing}), *calls[1:]]
