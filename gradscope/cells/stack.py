"""Connected layers as one cell: its state is theirs, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import jax.numpy as jnp

from gradscope.cells.cell import Cell, Member
from gradscope.cells.units import Parameters, Shapes
from gradscope.errors import InputError


@cache
def stacked(members: tuple[Member, ...]) -> Cell:
    """The cell of layers that read its inputs and each other, in the order in which they are computed.

    Its components are ``layer0``, ``layer1``, ... by the members' numbers, its parameters ``layer0.W_z``
    ..., its gates ``layer0.f`` ...; its output is that of the last layer. Its paths are the blocks of the
    one-step Jacobian: ``layer1`` is d(state of layer 1)/d(its own), ``0->1`` what the state of layer 0 at
    t-1 does to that of layer 1 at t, within the step and through all layers between them. Hidden and
    input size are the members' own, whatever is passed for them.

    Cached, so that what is compiled for a stack serves the next one like it.
    """
    layers = _Layers(members)
    return Cell(
        name=" + ".join(member.cell.name for member in members),
        parameters=layers.parameters,
        step=layers.step,
        paths=tuple(layers.paths.values()),
        components=tuple(member.name for member in members),
        gates=layers.gates if any(member.cell.gates for member in members) else None,
        sizes=lambda _: tuple(member.size for member in members),
        members=members,
        reads={member.name: member.name for member in members}.get,
    )


class _Layers:
    """What the cell of a stack does, by its members."""

    def __init__(self, members: tuple[Member, ...]) -> None:
        self.paths = block_names(members)
        self._members, self._extents = members, list(extents_of(members))
        count = range(len(members))
        self._reaching = [[i for i in range(j) if (i, j) in self.paths] for j in count]

    def parameters(self, *_: int) -> Shapes:
        """Those of all members, by their names."""
        return {
            f"{member.name}.{key}": shape
            for member in self._members
            for key, shape in member.cell.shapes(member.hidden, member.input_size).items()
        }

    def step(self, params: Parameters, x: Any, copies: Mapping[str, Any]) -> Any:
        """The new state (m,); what reaches a member through others is computed anew, from its own copy."""
        states, outputs = [], dict[int, Any]()
        same = len({id(copy) for copy in copies.values()}) == 1
        for j, below in enumerate(self._reaching):
            if not same:
                outputs = {}
                for i in below:
                    self._advance(params, x, copies[self.paths[i, j]], i, outputs)
            states.append(self._advance(params, x, copies[self.paths[j, j]], j, outputs))
        return jnp.concatenate(states)

    def gates(self, params: Parameters, x: Any, state: Any) -> dict[str, Any]:
        """{gate: activations (n,)} of all members that have any."""
        found, outputs = dict[str, Any](), dict[int, Any]()
        for j, (member, extent) in enumerate(zip(self._members, self._extents, strict=True)):
            if member.cell.gates:
                own = member.cell.gates(member.own(params), member.input(x, outputs), state[extent])
                found |= {f"{member.name}.{gate}": values for gate, values in own.items()}
            self._advance(params, x, state, j, outputs)
        return found

    def _advance(self, params: Parameters, x: Any, state: Any, j: int, outputs: dict[int, Any]) -> Any:
        """Member j's new state, with the outputs of those below; its own is put with them."""
        member = self._members[j]
        new = member.cell.advance(member.own(params), member.input(x, outputs), state[self._extents[j]])
        outputs[j] = new[member.output_in(0)]
        return new


def block_names(members: Sequence[Member]) -> dict[tuple[int, int], str]:
    """Names of the blocks of a one-step Jacobian that are not zero, by the members from and to which they go.

    Raises InputError where a member's reads are not its input.
    """
    names = {(j, j): member.name for j, member in enumerate(members)}
    for j in range(len(members)):
        names |= {(i, j): f"{members[i].number}->{members[j].number}" for i in _reaching(members, j)}
    return names


def extents_of(members: Sequence[Member]) -> Iterator[slice]:
    """Where in the stack's state each member's is."""
    end = 0
    for member in members:
        yield slice(end, end := end + member.size)


def _reaching(members: Sequence[Member], j: int) -> list[int]:
    """The members that member j reads, or that those read, in order; raises InputError if it cannot."""
    member, below, width = members[j], set[int](), 0
    for read in member.reads:
        if isinstance(read, int):
            if not 0 <= read < j:
                raise InputError(f"{member.name} reads member {read}, expected one of the {j} before it")
            below |= {read, *_reaching(members, read)}
            start, stop = 0, members[read].output_in(0).stop - members[read].output_in(0).start
        else:
            start, stop = read
        width += stop - start
    if width != member.input_size:
        raise InputError(
            f"{member.name} has input size {member.input_size}, but what it reads has {width} columns: "
            "give the outputs and columns that make up its input"
        )
    return sorted(below)
