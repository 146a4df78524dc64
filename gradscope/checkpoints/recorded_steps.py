"""Steps that a framework has differentiated, in the file of a recording: Jacobians, states, what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.checkpoints.derivatives import Derivatives, OwnSteps
from gradscope.checkpoints.found import Found
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, shown
from gradscope.formats.budget import Budget
from gradscope.formats.json_text import parsed
from gradscope.formats.tensors import Tensors

# The arrays of such a layer, and how many axes each has.
AXES = {"jacobians": 5, "states": 3, "told": 1}
_FRAMEWORKS = ("torch", "keras", "flax", "equinox")
# Of the text of a layer, and of a name or a sentence in it.
_MOST_TEXT, _LONGEST = 2**20, 2000


class RecordedSteps(Derivatives):
    """Of a layer of a recording.

    digests : of the arrays of its module, by name; used : the names of those that the steps are made of.
    """

    def __init__(self, by: str, kind: str, steps: OwnSteps, digests: Mapping[str, str], used: Iterable[str]):
        self.by, self.kind, self._steps = by, kind, steps
        self.digests, self._used = digests, frozenset(used)

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        return self._steps

    def weights(self) -> dict[str, Array]:
        """See Derivatives: a recording has their digests alone."""
        return {}

    def used(self) -> frozenset[str]:
        """See Derivatives."""
        return self._used

    @property
    def sizes(self) -> tuple[int, int]:
        """See Derivatives."""
        parts = self._steps.parts
        return parts.get("h", sum(parts.values())), self._steps.input_size


def digest(values: Array) -> str:
    """What tells an array from every other one."""
    exact = np.ascontiguousarray(values, "<f8")
    return hashlib.sha256(repr(exact.shape).encode() + exact.tobytes()).hexdigest()


def arrays_of(found: Found) -> dict[str, Array]:
    """What the file has of a layer; of one that cannot be differentiated why."""
    assert found.derivatives is not None
    told: dict[str, Any] = {"by": found.derivatives.by, "kind": found.kind}
    try:
        steps = found.derivatives.steps
    except InputError as error:
        return {"told": _text(told | {"problem": str(error)})}
    told |= {
        "paths": list(steps.paths),
        "parts": [[name, size] for name, size in steps.parts.items()],
        "input_size": steps.input_size,
        "assumed": list(found.assumed),
        "not_applied": list(found.not_applied),
        "weights": {name: digest(array) for name, array in found.derivatives.weights().items()},
        "used": sorted(found.derivatives.used()),
    }
    own = {"jacobians": steps.jacobians, "states": steps.states, "rounding": np.array(steps.rounding)}
    given = {"lengths": steps.lengths, "mask": steps.mask}
    own |= {key: np.array(value, np.float64) for key, value in given.items() if value is not None}
    said = {"fed_back": found.derivatives.fed_back, "backward": found.derivatives.backward}
    return {"told": _text(told), **own, **{key: np.array(float(value)) for key, value in said.items()}}


def _text(told: Mapping[str, Any]) -> Array:
    return np.frombuffer(json.dumps(told).encode(), np.uint8)


@dataclass(frozen=True)
class _Told:
    """What the text of a layer says, checked as it is asked for."""

    values: Mapping[str, Any]

    def text(self, key: str) -> str:
        """A name or a sentence."""
        return _printable(key, self.values.get(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """Several."""
        values = self.values.get(key)
        if not isinstance(values, list):
            raise _damaged(key)
        return tuple(_printable(key, value) for value in values)

    def sizes(self, key: str) -> dict[str, int]:
        """Names with numbers of units."""
        pairs = self.values.get(key)
        if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
            raise _damaged(key)
        found = {_printable(key, name): _count(key, size) for name, size in pairs}
        if not found or len(found) < len(pairs):
            raise _damaged(key)
        return found

    def digests(self) -> dict[str, str]:
        """Of arrays, by name."""
        values = self.values.get("weights")
        if not isinstance(values, Mapping):
            raise _damaged("weights")
        return {_printable("weights", k): _printable("weights", v) for k, v in values.items()}


def _printable(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST:
        raise _damaged(key)
    return value


def _count(key: str, value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**53:
        raise _damaged(key)
    return value


def _damaged(key: str) -> InputError:
    return InputError(f"what it is told ({key}) is damaged: record it again")


def found_in(name: str, fields: Mapping[str, Array]) -> Found:
    """The layer of arrays of these names; raises InputError where they are not such a layer's."""
    told = _told(fields["told"])
    if "problem" in told.values:
        return Found(name, {}, kind=told.text("kind"), problem=told.text("problem"))
    if missing := [key for key in (*AXES, "rounding") if key not in fields]:
        raise InputError(f"lacks {listed(missing)}: record it again")
    if (by := told.text("by")) not in _FRAMEWORKS:
        raise _damaged("by")
    parts, paths = told.sizes("parts"), told.texts("paths")
    jacobians, states = fields["jacobians"], fields["states"]
    batch, steps, m = len(states), states.shape[1] - 1, sum(parts.values())
    wanted = (batch, steps, max(1, len(paths)), m, m)
    if not steps or states.shape[2] != m or jacobians.shape != wanted or len(set(paths)) < len(paths):
        raise InputError(
            f"has Jacobians of shape {jacobians.shape} and states of {states.shape}, expected "
            f"(B, T, {wanted[2]}, {m}, {m}) and (B, T + 1, {m}): record it again"
        )
    lengths, mask = fields.get("lengths"), fields.get("mask")
    if lengths is not None and (len(lengths) != batch or lengths.max() > steps):
        raise InputError("has lengths that do not fit its sequences: record it again")
    own = OwnSteps(
        paths,
        jacobians,
        states,
        parts,
        _count("input_size", told.values.get("input_size")),
        float(fields["rounding"]),
        None if lengths is None else tuple(map(int, lengths)),
        None if mask is None else mask == 1,
    )
    derivatives = RecordedSteps(by, told.text("kind"), own, told.digests(), told.texts("used"))
    derivatives.fed_back, derivatives.backward = (
        bool(key in fields and fields[key].any()) for key in ("fed_back", "backward")
    )
    assumed, not_applied = told.texts("assumed"), told.texts("not_applied")
    found = Found(name, {}, kind=derivatives.kind, derivatives=derivatives)
    return replace(found, assumed=assumed, not_applied=not_applied)


def _told(text: Array) -> _Told:
    whole = ((text >= 0) & (text < 256) & (text == np.round(text))).all()
    if not whole or text.size > _MOST_TEXT:
        raise _damaged("text")
    try:
        values = parsed(bytes(text.astype(np.uint8)).decode(), Budget(text.size))
    except (ValueError, RecursionError) as error:
        raise _damaged("text") from error
    if not isinstance(values, dict):
        raise _damaged("text")
    return _Told(values)


def in_checkpoint(
    recorded: Iterable[Found], others: Sequence[Found], tensors: Tensors, label: str
) -> list[Found]:
    """Recorded layers, and those of a checkpoint that are none of their parts.

    One that was recorded with other weights than the checkpoint has says so, and is not analysed. label : the
    file of the recording.
    """
    names = _by_digest(tensors)
    found, parts = [], set[str]()
    for one in recorded:
        steps = one.derivatives
        assert isinstance(steps, RecordedSteps | None)
        digests = steps.digests if steps else {}
        for key in steps.used() if steps else ():
            parts |= names.get(digests.get(key, ""), set())
        missing = [key for key, value in digests.items() if value not in names]
        found.append(replace(one, derivatives=None, problem=_stale(missing, label)) if missing else one)
    kept = [one for one in others if parts.isdisjoint(one.keys)]
    gone = {one.name for one in others} - {one.name for one in kept}
    return [
        *found,
        *(replace(one, below=None) if gone.intersection(one.below or ()) else one for one in kept),
    ]


def _stale(missing: Sequence[str], label: str) -> str:
    are = "are" if len(missing) > 1 else "is"
    return (
        f"was recorded with other weights: {listed(missing, 3)} {are} not in this file with the values of "
        "then; record the model with the weights of this file, or analyse what was recorded as it was: "
        f"gradscope analyze {shown(label)}"
    )


def _by_digest(tensors: Tensors) -> dict[str, set[str]]:
    """The names of the tensors of every digest; those that are no finite numbers were not recorded."""
    found: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        with suppress(InputError):
            found.setdefault(digest(tensor.values()), set()).add(name)
    return found
