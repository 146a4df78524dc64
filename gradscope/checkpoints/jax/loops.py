"""The loops over time in what a model of JAX computes, be they of Python or scans."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from gradscope.checkpoints.jax.paths import PRODUCTS
from gradscope.checkpoints.jax.program import SLICED, Made, Program, Ref
from gradscope.checkpoints.loops.follow import TimeLoop, chained, loops
from gradscope.checkpoints.loops.operation import RESULT, Operation

# What takes a part of an array: of a stack of weights, one for each layer, another weight each time.
_PARTS = {"slice", "dynamic_slice", "gather", "split", SLICED}
_BETWEEN = "\0"


@dataclass
class _Origin:
    """What a value is made of.

    weights : the names of those that it is made of alone, with constants, or None; inputs : whether of what
    the model is given; moves : whether it has a gradient.
    """

    weights: frozenset[str] = frozenset()
    inputs: bool = False
    moves: bool = False

    @property
    def alone(self) -> bool:
        """Whether it is made of weights and constants alone."""
        return bool(self.weights) and not self.inputs


@dataclass
class Origins:
    """What the values of a program are made of.

    names : of its first arguments, which are weights; value : of a number, as it was in one run; others :
    weights of what is recurrent by itself, of which a part is not told apart.
    """

    program: Program
    names: Sequence[str]
    value: Callable[[int], Any]
    others: Collection[str] = ()
    of: list[_Origin] = field(default_factory=list)

    def __post_init__(self) -> None:
        arguments = len(self.program.arguments)
        self.of = [_Origin(inputs=True) for _ in self.program.shapes]
        for number, name in enumerate(self.names):
            self.of[number] = _Origin(frozenset([name]))
        assert arguments >= len(self.names)
        for one in self.program.operations:
            for slot, put in enumerate(one.puts):
                self.of[put] = self._made(one, slot)

    def read(self, ref: Ref) -> _Origin:
        """Of an argument."""
        return self.of[ref] if isinstance(ref, int) else _Origin()

    def _made(self, one: Made, slot: int) -> _Origin:
        read = [self.read(ref) for ref in one.reads]
        weights = frozenset[str]().union(*(origin.weights for origin in read if not origin.inputs))
        meets = one.name in PRODUCTS and not all(origin.alone for origin in read)
        if any(origin.inputs for origin in read) or (weights and meets):
            return _Origin(inputs=True)
        if one.name in _PARTS and weights:
            which = "".join(filter(None, (str(one.same), str(slot), *map(self._index, one.reads))))
            weights = frozenset(
                name if name.split(_BETWEEN)[0] in self.others else f"{name}{_BETWEEN}{hash(which)}"
                for name in weights
            )
        return _Origin(weights)

    def _index(self, ref: Ref) -> str:
        """The numbers of an index."""
        if isinstance(ref, int) and self.program.real[ref]:
            return ""
        value = self.value(ref) if isinstance(ref, int) else ref.value
        if jax.numpy.issubdtype(getattr(value, "dtype", bool), jax.dtypes.prng_key):
            return ""
        value = np.asarray(value)
        return "" if value.dtype.kind == "f" or value.size > 64 else str(value.tolist())


def whole_weight(name: str) -> str:
    """The name of the weight of which another is a part."""
    return name.split(_BETWEEN)[0]


def used_again(origins: Origins) -> set[str]:
    """The names of the weights that are used again and again on what came of the use before."""
    every = {name for origin in origins.of for name in origin.weights}
    return chained([*_operations(origins, every)], origins.others)


def time_loops(origins: Origins) -> list[TimeLoop]:
    """The loops of a program, in their order.

    Raises InputError where there is a loop that cannot be told apart into steps.
    """
    again = used_again(origins)
    return loops([*_operations(origins, again | set(origins.others))], origins.others)


def _operations(origins: Origins, watched: Collection[str]) -> Iterator[Operation]:
    """The operations of a program; watched : weights that may be what a loop uses again."""
    program, moving = origins.program, set[int]()
    for one in program.operations:
        read = [origins.read(ref) for ref in one.reads]
        met = frozenset[str]().union(*(origin.weights for origin in read if origin.alone))
        alone = all(origins.of[put].alone for put in one.puts)
        known = met & frozenset(watched)
        moves = (bool(known) and not alone) or any(ref in moving for ref in one.reads)
        made = {
            (RESULT, slot): program.shapes[put]
            for slot, put in enumerate(one.puts)
            if moves and program.real[put] and one.name != "stop_gradient"
        }
        moving.update(one.puts[slot] for _, slot in made)
        reads = {
            ("argument", place): (number, (RESULT, slot))
            for place, ref in enumerate(one.reads)
            if ref in moving and made
            for number, slot in [program.maker[ref]]
        }
        weights = known if made and not alone else frozenset[str]()
        yield Operation(one.name, one.code, one.frames, reads, weights, met if made else frozenset(), made)
