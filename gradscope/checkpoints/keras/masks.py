"""Masks that a functional model of Keras 3 spells out: the operations that make them, and where they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradscope.checkpoints.signals import Mask, Signal

# What layers that join values make of the masks of these.
_OPERATIONS = (
    *("All", "Any", "BroadcastTo", "Concatenate", "ExpandDims", "LogicalAnd", "LogicalOr"),
    *("OnesLike", "ZerosLike"),
)
# A mask in the making: entries that are not a value, of which nothing yet says whether they are tokens; and
# one that another is joined with and that changes nothing.
_ENTRIES, _NEUTRAL = "entries", "neutral"


def made_mask(kind: Any, name: str, call: Any, given: Sequence[Signal]) -> Mask | None:
    """The mask that an operation of Keras makes, None of one that makes none."""
    if kind == "NotEqual":
        return _entries(name, call, given)
    if kind == "ZerosLike":
        return Mask(_NEUTRAL)
    if kind not in _OPERATIONS or not any(signal.tells for signal in given):
        return None
    joined = {signal.tells or Mask() for signal in given if signal.tells != Mask(_NEUTRAL)}
    if len(joined) != 1 or kind == "OnesLike":
        return Mask()
    (mask,) = joined
    if mask.kind == _ENTRIES and kind in ("Any", "ExpandDims"):
        return replace(mask, kind="features" if kind == "Any" else "ids")
    return mask


def given_mask(signal: Signal, references: Sequence[Any], values: Mapping[Any, Signal]) -> Signal:
    """The value as a layer reads it that is called with a mask, a constant where there are no references."""
    told = [values[reference].tells for reference in references if reference in values]
    mask = (told[0] if len(told) == len(references) == 1 else None) or Mask()
    if mask.kind == _ENTRIES:
        mask = replace(mask, kind="ids")
    # The layer that made it is known by name where it is the one that goes along with the value.
    own = signal.mask
    same = own is not None and (own.kind, own.value, own.of) == (mask.kind, mask.value, mask.of)
    return signal if same else replace(signal, mask=mask)


def _entries(name: str, call: Any, given: Sequence[Signal]) -> Mask:
    """The mask of ``value != number``."""
    arguments = call.get("args") if isinstance(call, dict) else None
    number = arguments[1] if isinstance(arguments, list) and len(arguments) == 2 else None
    known = len(given) == 1 and given[0].layers == () and isinstance(number, int | float)
    return Mask(_ENTRIES, float(number or 0), name, given[0].root) if known else Mask()
