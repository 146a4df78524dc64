"""What the code of a model does, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradscope.checkpoints.carried import Place

# The first of a place of what an operation puts out; of what it writes into, the place of that argument.
RESULT = "result"
# A tensor as it is after an operation: that operation's number, and which of what it made.
Value = tuple[int, Place]


@dataclass(frozen=True)
class Operation:
    """A function of the framework that the code of a model called.

    name : of the function; code : where it was called, the offsets within the Python functions that were
        running, from the outermost on; frames : a number for each of these, of every time that it was called.
    reads : {place of an argument: the value}, of those with a gradient that operations made; weights : the
        names of watched parameters that met something else here, met : of all; made : {place: shape} of what
        it made with a gradient.
    """

    name: str
    code: tuple[int, ...]
    frames: tuple[int, ...]
    reads: Mapping[Place, Value]
    weights: frozenset[str]
    met: frozenset[str]
    made: Mapping[Place, tuple[int, ...]]
