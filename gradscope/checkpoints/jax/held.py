"""Whether a model of JAX holds gradients back within a layer that puts out what its class does.

A ``stop_gradient``, a ``custom_vjp`` or a ``custom_jvp`` changes no number of the forward pass. It is looked
for in the program that JAX traces: between two products with the recurrent weights of a layer, on a way that
is not that of its inputs, which count as given.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gradscope.checkpoints.jax.loops import Origins, whole_weight
from gradscope.checkpoints.jax.paths import PRODUCTS
from gradscope.checkpoints.jax.program import Made, Program, Ref
from gradscope.checkpoints.jax.traced import sketched
from gradscope.checkpoints.pure_steps import Pure
from gradscope.errors import InputError

HELD = (
    "puts out what its class does with its weights, and holds a gradient back on the way from state to "
    "state, or changes it (stop_gradient, a custom_vjp or custom_jvp)"
)
BETWEEN = (
    "is called step by step, and between its calls a gradient is held back or changed (stop_gradient, a "
    "custom_vjp or custom_jvp), which is not in the derivatives of its steps: expected the state to be given "
    "on as it is"
)
UNSEEN = "whether anything holds gradients back in it could not be seen: JAX cannot trace the model"
# The weights that a cell multiplies its inputs by: of Equinox and Keras, of Flax (dense_i, ii, if_, in, i).
_READS_INPUTS = re.compile(r"(.*[./])?(weight_ih|kernel)")
_OF_FLAX = re.compile(r"(.*[./])?(dense_i|i[a-z]?_?)[./]kernel([./]value)?")


def held_back(
    call: Pure, weights: Mapping[str, Any], batch: Any, layers: Mapping[str, Collection[str]]
) -> dict[str, int]:
    """How many operations hold a gradient back on the way from step to step of layers, where any does.

    call : the model as a function of its weights; layers : the names of the weights of each. Raises
    InputError of a model that cannot be traced, of which nothing is known.
    """
    traced = sketched(call, weights, batch, (), with_holds=True)
    if traced is None:
        return {}
    program, value = traced
    origins = Origins(program, [*weights], value)
    found = {name: _Layer(program, origins, frozenset(keys)).holds() for name, keys in layers.items()}
    return {name: count for name, count in found.items() if count}


def held_within(calls: int, call: Pure, weights: Mapping[str, Any], batch: Any) -> int:
    """How many such operations are between the products of so many calls of a module in a row."""
    with suppress(InputError):
        if traced := sketched(call, weights, batch, (), with_holds=True):
            return (calls - 1) * sum(one.holds for one in traced[0].operations)
    return 0


@dataclass(frozen=True)
class _Layer:
    """One layer in a program; keys : the names of its weights."""

    program: Program
    origins: Origins
    keys: Collection[str]

    def holds(self) -> int:
        """How many holds read what comes of a product with its weights, and go on to a recurrent product.

        Of an operation that runs a program of its own (a while_loop, a cond) it is not seen which are which.
        """
        fed, before = set[int](), list[Made]()
        for one in self.program.operations:
            if self._used(one) or not fed.isdisjoint(one.reads):
                if one.holds and not fed.isdisjoint(one.reads):
                    before.append(one)
                fed.update(one.puts)
        on = set[Ref]()
        for one in reversed(self.program.operations if before else ()):
            used = self._used(one)
            if (used and not all(map(self._reads_inputs, used))) or not (used or on.isdisjoint(one.puts)):
                on.update(one.reads)
        seen = sum(not on.isdisjoint(one.puts) for one in before)
        return seen + sum(one.holds and bool(self._met(one)) for one in self.program.operations)

    def _used(self, one: Made) -> list[str]:
        """The matrices of the layer that an operation multiplies something else by."""
        return self._met(one) if one.name in PRODUCTS else []

    def _met(self, one: Made) -> list[str]:
        """Its matrices among what an operation reads beside what is none of any weights alone."""
        read = [self.origins.read(ref) for ref in one.reads]
        if all(origin.alone for origin in read):
            return []
        names = {whole_weight(name) for origin in read if origin.alone for name in origin.weights}
        return [*names.intersection(self.keys)]

    def _reads_inputs(self, name: str) -> bool:
        last = any(key.endswith(("recurrent_kernel", "weight_hh")) for key in self.keys)
        return (_READS_INPUTS if last else _OF_FLAX).fullmatch(name) is not None
