"""One sequence of a system on a device, and its Jacobians on the host, segment by segment."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import jax
import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.anew import given, read_by_others, slopes_anew
from gradscope.linearize.below_range import far_paths
from gradscope.linearize.budget import SEGMENT_BYTES, step_bytes
from gradscope.linearize.cell_chain import cell_view, split
from gradscope.linearize.course import course, joined_course
from gradscope.linearize.gates import gate_sums
from gradscope.linearize.jacobian_chain import JacobianChain
from gradscope.linearize.jacobians import linearize, link
from gradscope.linearize.levels import Last, comes_near
from gradscope.linearize.more_digits import Digits, Some
from gradscope.linearize.stack_chain import blocked
from gradscope.linearize.system import System, cast, precise
from gradscope.linearize.trajectory import Segments, Spread, Trajectory


class Linearized:
    """The chain of one sequence: ``steps`` Jacobians in segments that begin at ``starts``.

    cut : paths left out; view : "state", or "cell" for the chain of an LSTM's c alone.
    """

    def __init__(
        self,
        system: System,
        sequence: int,
        device: jax.Device,
        *,
        cut: Sequence[str] = (),
        view: str = "state",
        parameters: Parameters | None = None,
    ) -> None:
        """Parameters: those of the system, where they are on the device already."""
        self._gates: dict[int, dict[str, Array]] = {}
        self._courses: dict[int, dict[str, Array]] = {}
        self._system, self._device, self._cut, self._view = system, device, cut, view
        self._rests: dict[int, Last] = {}  # of the states after each segment
        self._links: dict[int, Array] = {}  # the cell view's link after each segment
        self._held = WeakValueDictionary[int, JacobianChain]()
        self._lock = Lock()
        steps = system.length(sequence)
        segments = Segments.cover(system.steps, step_bytes(system.cell, system.hidden), SEGMENT_BYTES)
        segments = segments if steps == system.steps else segments.first(steps)
        with precise(system.dtype):
            one = system.part(slice(sequence, sequence + 1))
            self._trajectory = Trajectory(one, segments, Spread((device,)), parameters)
        skipped = int(view == "cell")  # it has no step 1
        self.steps = steps - skipped
        self.starts: Sequence[int] = [max(0, i * segments.length - skipped) for i in range(segments.count)]

    def segment(self, i: int) -> JacobianChain:
        """The Jacobians of segment i, computed anew where nobody holds them."""
        with self._lock:
            found = self._held.get(i)
            if found is None:
                found = self._held[i] = self._segment(i)
            return found

    def _segment(self, i: int) -> JacobianChain:
        system = self._system
        found = self._on_host(i)
        of_cell = (system.cell, system.parameters, found, self._cut)
        if self._view != "cell":
            return blocked(*of_cell) if system.cell.members else split(*of_cell, system.hidden)
        if i and i - 1 not in self._links:
            self._on_host(i - 1)
        return cell_view(*of_cell, self._links.get(i - 1))

    @property
    def gate_sums(self) -> dict[str, Array]:
        """Sums over the gates, as gates.gate_sums, of all segments loaded so far."""
        each = list(self._gates.values())
        return {name: np.sum([sums[name] for sums in each], axis=0) for name in each[0]}

    @property
    def course(self) -> dict[str, Array]:
        """The course of the trajectory (see course.course), of all segments loaded so far."""
        return joined_course(list(self._courses.values()))

    def _anew(self, inputs: Array, found: dict[str, Any], first: Last, near: bool) -> tuple[bool, Last]:
        """Put slopes in ``found`` that are not those of the dtype, see ``slopes_anew`` and ``far_paths``.

        near : whether states of these steps come near levels. Whether slopes that are not 0 are held now, and
        the rest of the last state.
        """
        cell, parameters = self._trajectory.cell, self._system.parameters
        along, last = (cell, parameters, inputs, found["states"], first), None
        if first is not None or near:
            anew, last = slopes_anew(*along, read_by_others(cell, found["paths"]), unbounded=False)
            found["paths"] = jax.tree.map(lambda _, path: path, found["paths"], anew)
        found["far"], held = None, False
        if self._view != "cell":  # whose links are in that dtype
            found["far"], held, further = far_paths(*along, found["paths"])
            last = further or last
        return held, last

    def _rest(self, i: int) -> Last:
        """That of the state before segment i, None where it is of its own digits; see ``levels``."""
        if i == 0 or not comes_near(self._trajectory.cell):
            return None
        for before in range(i):
            if before not in self._rests:
                self._on_host(before)
        return self._rests[i - 1]

    def _on_host(self, i: int) -> dict[str, Any]:
        """What ``linearize`` and ``link`` return, without the padding; its sums are noted."""
        trajectory, first = self._trajectory, self._rest(i)
        with self._system.running(), jax.default_device(self._device):
            one = (trajectory.parameters, trajectory.inputs(i), trajectory.start(i))
            found: dict[str, Any] = jax.device_get(_linearized(trajectory.cell, self._view, *one))
        valid = trajectory.valid(i)
        states = found.pop("states")[: valid + 1]
        found = jax.tree.map(lambda array: array[:valid], found) | {"states": states}
        self._gates[i] = gate_sums(found["gates"])
        inputs = np.asarray(one[1])[0, :valid]
        if i not in self._courses:
            before = i * trajectory.segments.length
            walked = (trajectory.cell, self._system.parameters, inputs, states, found["gates"], before)
            self._courses[i] = course(*walked)
        near = bool(self._courses[i]["near"][0])
        held, self._rests[i] = self._anew(inputs, found, first, near)
        self._courses[i]["flushed"] = np.array([0.0 if held else 1.0])
        self._courses[i]["small"] = np.array([0.0 if held and found["far"] is None else 1.0])
        if self._view != "cell" and trajectory.segments.count == 1 and not given(trajectory.cell):
            along = (trajectory.cell, self._system.parameters, inputs, states)
            found["digits"] = Some(Digits(*along, read_by_others(trajectory.cell, found["paths"])))
        if "link" in found:
            self._links[i] = np.asarray(found["link"][-1], np.float64)
        return found


def sequences_on(
    system: System, numbers: Iterable[int], devices: Sequence[jax.Device], cut: Sequence[str], view: str
) -> list[Linearized]:
    """Sequences of the batch, dealt out to the devices; each device holds the parameters once."""
    with precise(system.dtype):
        placed = [Spread((d,)).replicate(cast(system.parameters, system.dtype)) for d in devices]
    turns = zip(numbers, itertools.cycle(zip(devices, placed, strict=True)), strict=False)
    return [
        Linearized(system, number, device, cut=cut, view=view, parameters=parameters)
        for number, (device, parameters) in turns
    ]


@partial(jax.jit, static_argnums=(0, 1))
def _linearized(cell: Cell, view: str, parameters: Parameters, inputs: Any, start: Any) -> dict[str, Any]:
    """What ``linearize`` returns of a batch of one, and ``link`` where the view needs it."""
    found: dict[str, Any] = linearize(cell, parameters, inputs[0], start[0])
    if view == "cell":
        found["link"] = link(cell, found["states"], found["gates"])
    return found
