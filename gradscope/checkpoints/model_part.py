"""Only the model is a model: what an optimiser keeps, gradients and copies of weights go by their names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from gradscope.errors import InputError, listed
from gradscope.formats.tensors import Tensors

_OPTIMISER = re.compile(
    r"(.*_)?optim(i[sz]er)?s?(_.*)?|opt(_states?(_dict)?)?|adamw?|(max_)?exp_avg(_sq)?s?|momentum_buffers?|grad(ient)?s?",
    re.I | re.S,
)
# Moving averages of the weights, which have the names of the weights themselves under one of their own.
_AVERAGE = re.compile(r"(.*_)?(ema|swa|shadow|averaged?|avg)(_.*)?", re.I | re.S)
# What may be around one of two copies alone.
_WRAPPER = re.compile(r"^(module|model|_orig_mod)[./]")
_DEEPEST = 64


def model_only(tensors: Tensors) -> tuple[Tensors, str]:
    """The tensors that are a model's, and a sentence about copies of them that are left out, or "".

    Raises InputError where there is nothing but what an optimiser keeps.
    """
    # What an optimiser saves alone are state.0.exp_avg, ..., by the parameters' numbers.
    ours = {key: one for key, one in tensors.items() if not any(map(is_optimiser, _names(key)))}
    if tensors and not ours:
        raise InputError(f"holds {listed(list(tensors), 4)}, which an optimiser keeps: save the model itself")
    copies = _copies(ours)
    heads = dict.fromkeys(copies.values())
    left_out = f"{listed(list(heads))} in the file holds averages of the weights, which are not read"
    return {key: ours[key] for key in ours if key not in copies}, left_out if copies else ""


def is_optimiser(name: str) -> bool:
    """Whether what is under this name is an optimiser's."""
    return _OPTIMISER.fullmatch(name) is not None


def is_average(name: str) -> bool:
    """Whether what is under this name is an average of weights."""
    return _AVERAGE.fullmatch(name) is not None


def _copies(tensors: Tensors) -> dict[str, str]:
    """The averages of tensors that are there themselves, and the names that they are under."""
    heads: dict[str, str] = {}
    tails: dict[str, list[str]] = {}
    for key in tensors:
        place = next((k for k, part in enumerate(_parts(key)) if is_average(part)), None)
        if place is not None:
            end = next(itertools.islice(_ends(key), place, None))
            heads[key] = key[: end - 1]
            tails.setdefault(_WRAPPER.sub("", key[end:], 1), []).append(key)
    there = {
        key[start:]
        for key in tensors
        if key not in heads
        for start in (0, *_ends(key))
        if heads and key[start:] in tails
    }
    return {key: heads[key] for tail in there for key in tails[tail]}


def _parts(key: str) -> list[str]:
    """The names of the modules that a tensor is in."""
    return _names(key)[:-1]


def _names(key: str) -> list[str]:
    """The same, and its own."""
    return re.split(r"[./]", key, maxsplit=_DEEPEST)


def _ends(key: str) -> Iterator[int]:
    """Where the names of the modules end, and what is in them begins."""
    return (mark.end() for mark in itertools.islice(re.finditer(r"[./]", key), _DEEPEST))
