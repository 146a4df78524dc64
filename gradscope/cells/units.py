"""The fast form of a cell: units that meet only in the recurrent matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradscope.cells.notation import is_recurrent, key

Parameters = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Units:
    """A cell whose units meet only in the recurrent matrices.

    A unit's new state is a function ``core`` of its own old state and of its pre-activations
    ``drive_g + R_g h + p_g c``. The derivative of that scalar core is O(n) numbers a step, and
    J = diag + sum over gates of diag(d_g) R_g.

    gates : gates with a recurrent matrix ``R_<gate>`` (``R`` where the name is empty).
    drive : ``(parameters, x) -> {pre-activation: (n,)}``, the part that is not recurrent.
    weights : of each pre-activation that the input enters, the key of its input weights.
    core : ``(own, {pre-activation: scalar}, {key: scalar}) -> (new state tuple, gate values)``.
    own : the path by which a unit reads its own state directly, if there is one.
    peepholes : gates that look at the cell state at t-1, each with a vector ``p_<gate>``.
    constants : per-unit parameters that ``core`` reads, where there are such.
    squash : ``(c) -> h / o``, where the output is a gate times a function of the cell (LSTM).
    """

    gates: tuple[str, ...]
    drive: Callable[[Parameters, Any], dict[str, Any]]
    weights: tuple[tuple[str, str], ...]
    core: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    own: str | None = None
    peepholes: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    squash: Callable[[Any], Any] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path of the cell: own state first, then recurrent matrices, then peepholes."""
        own = (self.own,) if self.own else ()
        return own + tuple(key("R", g) for g in self.gates) + tuple(key("p", g) for g in self.peepholes)

    def reads(self, path: str) -> str:
        """The state component that a path reads: recurrent matrices read h, a cell's own paths c."""
        return "h" if self.squash is None or is_recurrent(path) else "c"

    def pre_activations(
        self, parameters: Parameters, drive: Mapping[str, Any], read: Callable[[str], Any]
    ) -> dict[str, Any]:
        """Pre-activations (n,) of every gate; ``read(path)`` is the component that path reads."""
        pre = dict(drive)
        for gate in self.gates:
            matrix = key("R", gate)
            pre[gate] = pre[gate] + parameters[matrix] @ read(matrix)
        for gate in self.peepholes:
            peephole = key("p", gate)
            pre[gate] = pre[gate] + parameters[peephole] * read(peephole)
        return pre

    def advance(
        self, parameters: Parameters, drive: Mapping[str, Any], read: Callable[[str], Any]
    ) -> tuple[Any, dict[str, Any]]:
        """New components and gate values of all units, each (n,)."""
        import jax

        pre = self.pre_activations(parameters, drive, read)
        own = read(self.own) if self.own else jax.numpy.zeros_like(pre[self.gates[0]])
        return jax.vmap(self.core)(own, pre, self.constants_of(parameters))

    def constants_of(self, parameters: Parameters) -> dict[str, Any]:
        """Those of ``constants`` that there are."""
        return {key: parameters[key] for key in self.constants if key in parameters}
