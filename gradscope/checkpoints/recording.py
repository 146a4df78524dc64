"""What the recurrent layers of a model read and put out in one forward pass of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import listed

if TYPE_CHECKING:
    from gradscope.checkpoints.derivatives import Derivatives
    from gradscope.checkpoints.found import Found
    from gradscope.checkpoints.layer import Layer

_BEGUN = "it starts from {}: the way back through its start is not in the gain"
_FED_BACK = (
    "what it reads depends on what it put out at steps before, by other parts of the model: its inputs are "
    "held as they were, so that way back is not in the gain"
)


@dataclass(frozen=True)
class Recording:
    """Of one layer, in the order of the sequences also for a backward one; all float64.

    inputs : (B, T, d), None of a layer within a module of several, which reads the others.
    outputs : (B, T, n), None where another layer of its module has them.
    state : {"h0": (B, n), "c0": ...}, before the first step that it reads; empty where it is zero.
    last : (B, n), the output at the last step that it reads, where the module tells.
    lengths : (B,), steps of each sequence, None where all have T.
    mask : (B, S), which steps of what the layer was given these are, without those that leave its state as it
        is; None where they are all.
    backward : whether it reads the sequences from their ends.
    rounding : relative, of the numbers that it computes with (eps).
    fed_back : whether its inputs depend on its own outputs at earlier steps.
    unlike : that its derivatives are others than those of its class, and how; unseen : why that was not seen.
    states : (B, T + 1, m), those before and after every step, where its Jacobians are its inputs (see
        ``Derivatives``).
    """

    inputs: Array | None = None
    outputs: Array | None = None
    state: Mapping[str, Array] = field(default_factory=dict)
    last: Array | None = None
    lengths: tuple[int, ...] | None = None
    rounding: float = 2.0**-23
    fed_back: bool = False
    mask: Array | None = None
    backward: bool = False
    states: Array | None = None
    unlike: str = ""
    unseen: str = ""

    @property
    def start(self) -> Array:
        """(B, m), all of the state before the first step; (B, 0) where it is zero and was not given."""
        if self.states is not None:
            return self.states[:, 0]
        parts = [*self.state.values()]
        return np.concatenate(parts, axis=1) if parts else np.zeros((1, 0))

    @property
    def end(self) -> Array:
        """(B, n), what was put out at the last step that was read, or (B, m), all of the state after it."""
        if self.last is not None:
            return self.last
        values = self.outputs if self.states is None else self.states
        if values is None:
            return np.zeros((1, 0))
        steps = values.shape[1] - (self.states is not None)
        last = np.array(self.lengths or [steps] * len(values)) - (self.states is None)
        return values[:, 0] if self.backward and self.states is None else values[np.arange(len(last)), last]


def turned_within(values: Array, lengths: Sequence[int] | None) -> Array:
    """Sequences (B, T, ...), each from the end of its length."""
    turned = values.copy()
    for sequence, length in zip(turned, lengths or [turned.shape[1]] * len(turned), strict=True):
        sequence[:length] = sequence[:length][::-1]
    return turned


@dataclass(frozen=True)
class Recorded:
    """Of the layers of a model.

    layers : by their names; problems : {name: why there is none of it}; label : the file, or "recorded".
    own : {name of a module: its own derivatives}, in which some of the layers are.
    made_of_inputs : whether the inputs that were given are the model's, of which this was made; said : what
        is to be said of that.
    found : all that are in the file of a recording; those with steps of their own are whole.
    """

    layers: Mapping[str, Recording]
    problems: Mapping[str, str] = field(default_factory=dict)
    label: str = "recorded"
    own: Mapping[str, Derivatives] = field(default_factory=dict)
    made_of_inputs: bool = False
    said: str = ""
    found: tuple[Found, ...] = ()

    @property
    def steps(self) -> tuple[Found, ...]:
        """Of the layers in the file those with steps of their own, or without any, which they say."""
        return tuple(one for one in self.found if one.name not in self.layers)

    @property
    def state_label(self) -> str:
        """What JSON calls where initial states are from."""
        return "recorded" if self.made_of_inputs else self.label

    def named(self, names: Sequence[str]) -> Recorded:
        """The same by the names of a checkpoint, where these are the ends of others, or have them as theirs.

        A tree of Flax may be saved with the name of its collection, ``params``, or without.
        """
        left = [name for name in self.layers if name not in names]
        fits = {
            name: [one for one in left if one.endswith((f".{name}", f"/{name}")) or name.endswith(f".{one}")]
            for name in names
            if name not in self.layers
        }
        found = [one for ones in fits.values() for one in ones]
        theirs = {ones[0]: name for name, ones in fits.items() if len(ones) == 1 == found.count(ones[0])}
        return replace(self, layers={theirs.get(name, name): one for name, one in self.layers.items()})

    def told(self, found: Found) -> Found:
        """A layer with what its recording says.

        Whether it computes what its class does is no question any more: that is compared. A layer of which
        there is no recording cannot be analysed.
        """
        recording = found.derivatives or self.layers.get(found.name)
        if recording is None:
            return replace(found, problem=found.problem or self._why(found.name))
        said = (_FED_BACK,) if recording.fed_back else ()
        question = found.question if len(found.cells) > 1 else ""
        found = replace(found, doubt="", adapters=(), question=question, alone=False, given_state=False)
        found = replace(found, direction="backward" if recording.backward else "forward")
        found = replace(found, lengths=None, given_lengths="")
        unseen = "" if found.derivatives else self.layers[found.name].unseen
        assumed = (*found.assumed, *filter(None, (self.said, unseen)))
        return replace(found, not_applied=(*found.not_applied, *said), assumed=assumed)

    def on_its_own(self, found: Found, chosen: Collection[str]) -> Found:
        """A layer without those below it, where not all of these are chosen and it has inputs of its own."""
        recording = self.layers.get(found.name)
        own = recording is not None and recording.inputs is not None
        return replace(found, below=()) if own and not set(chosen).issuperset(found.below or ()) else found

    def with_steps(self, layers: Iterable[Layer]) -> Recorded:
        """The same with what those layers read that are differentiated elsewhere."""
        more = {layer.name: layer.derivatives.recording for layer in layers if layer.derivatives}
        return replace(self, layers={**self.layers, **more})

    def begun(self, layer: Layer) -> Layer:
        """A layer with what is to be said of its start, if that is not zero, nor the same in every sequence.

        What other layers ended in is told by its numbers.
        """
        start = self.layers[layer.name].start
        ended = [
            name
            for name, other in self.layers.items()
            if name != layer.name and start.any() and _holds(start, other.end)
        ]
        if not ended and (not start.any() or (len(start) > 1 and (start == start[0]).all())):
            return layer
        where = f"where {listed(ended)} ended" if ended else "a state that is not zero, whatever computes it"
        return replace(layer, not_applied=(*layer.not_applied, _BEGUN.format(where)))

    def _why(self, name: str) -> str:
        having = f"is not in the recording, which has {listed(list(self.layers)) or 'no layer at all'}"
        return self.problems.get(name, having)


def _holds(start: Array, end: Array) -> bool:
    """Whether some columns next to each other are all those of another array that has any number in it."""
    rows, count = end.shape
    return bool(end.any()) and any(
        np.array_equal(start[:, k : k + count], end)
        for k in range(start.shape[1] - count + 1)
        if rows == len(start)
    )
