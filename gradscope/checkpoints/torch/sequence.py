"""A module of PyTorch that reads whole sequences and puts out its last state: called step by step by us."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradscope.checkpoints.carried import ARGUMENTS, OUTPUT, Carried, Place, StepCall, started
from gradscope.checkpoints.derivatives import Derivatives, OwnSteps
from gradscope.checkpoints.torch.steps import (
    Stepper,
    TorchSteps,
    doubled,
    dropout_of,
    is_real,
    module_weights,
)
from gradscope.custom_types import Array
from gradscope.errors import InputError, reason

_WANTED = "expected a module that is called with (input, state) and puts out (output, state), as torch's own"
# Of the largest output: what steps one by one and all at once may differ by in float64, and else in eps.
_APART, _APART_EPS = 1e-8, 1e4


class TorchSequence(Derivatives):
    """Of a module that is called once on sequences, and is a recurrence within.

    module : a copy; call : what it was given and put out; unlike : why it is no loop of its own that could be
    told apart, if that is known.
    """

    by = "torch"

    def __init__(self, module: Any, kind: str, call: StepCall, unlike: str = "") -> None:
        self.kind, self._unlike = kind, unlike
        self._module, self._call = module.eval(), call
        self.not_applied = dropout_of(module)

    def weights(self) -> dict[str, Array]:
        """See Derivatives."""
        return module_weights(self._module, [self._call])

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        if any(map(_is_packed, _values(self._call.arguments))):
            raise InputError(
                "is given a PackedSequence, which cannot be cut into steps: record it on a padded batch"
            )
        whole, why = None, ""
        try:
            double = Stepper(doubled(self._module), Carried((), {}), (), double=True)
            whole = double if double.repeats(self._call) else None
        except InputError:
            raise
        except Exception as error:  # the user's code may fail in any way in another dtype
            why = f" (in float64 it fails with {type(error).__name__}: {reason(error)})"
        try:
            return self._stepped(whole or Stepper(self._module, Carried((), {}), ())).differentiate()
        except InputError as error:
            within = "is a recurrence within, of which no loop is seen: it"
            within = f"is a recurrence within: it {self._unlike}; and it" if self._unlike else within
            raise InputError(f"{within} {error}{why}") from error

    def _stepped(self, stepper: Stepper) -> TorchSteps:
        """The steps, called one after the other, if they are the sequence."""
        axes, place = self._axes()
        reasons = []
        for axis in axes:
            try:
                calls, state = self._calls(stepper, place, axis)
                self._check(stepper, calls, axis)
            except InputError as error:
                reasons.append(str(error))
                continue
            zeros = importlib.import_module("torch").zeros_like
            first = started(calls, state, zeros)
            return TorchSteps(stepper.module, self.kind, first, state, fed_back=False)
        raise InputError(f"cannot be called step by step: {reasons[0]}; {_WANTED}")

    def _axes(self) -> tuple[tuple[int, ...], Place]:
        """Which axes may be time, and where the sequences are given."""
        for place, tensor in self._call.given.items():
            if place[0] == ARGUMENTS and is_real(tensor) and tensor.ndim in (2, 3):
                first = getattr(self._module, "batch_first", None)
                if tensor.ndim == 2:
                    return (0,), place
                return {True: (1,), False: (0,)}.get(first, (1, 0)), place  # type: ignore[arg-type]
        raise InputError(f"is given no sequences, a tensor of two or three axes: {_WANTED}")

    def _calls(self, stepper: Stepper, place: Place, axis: int) -> tuple[list[StepCall], Carried]:
        """One call a step, each given the state that the one before put out."""
        given = dict(self._call.given)
        calls: list[StepCall] = []
        sources: tuple[Place, ...] = ()
        places: dict[Place, int] = {}
        for step in given[place].split(1, axis):
            call = StepCall(self._call.arguments, {**given, place: step}, {})
            try:
                made = stepper.made(call)
            except Exception as error:
                what = f"step {len(calls) + 1} alone fails with {type(error).__name__}: {reason(error)}"
                raise InputError(what) from error
            if not calls:
                sources, into = _state(made, self._call, place)
                places = {(*into, *source[2:]): number for number, source in enumerate(sources)}
            calls.append(StepCall(call.arguments, call.given, made))
            given |= {where: made[sources[number]] for where, number in places.items()}
        return calls, Carried(sources, places)

    def _check(self, stepper: Stepper, calls: Sequence[StepCall], axis: int) -> None:
        """Raise InputError where the steps put out something else than the whole sequence."""
        torch = importlib.import_module("torch")
        whole = stepper.made(self._call)
        place = next(iter(whole))
        parts, one = [call.made[place] for call in calls], whole[place]
        every = one.ndim > axis and one.shape[axis] == len(calls)
        together = torch.cat(parts, axis) if every else parts[-1]
        eps = float(torch.finfo(one.dtype).eps)
        allowed = (_APART if eps < 1e-15 else _APART_EPS * eps) * float(one.abs().max())
        if together.shape != one.shape or not float((together - one).abs().max()) <= allowed:
            raise InputError("called step by step it puts out something else than on the whole sequence")


def _state(made: Mapping[Place, Any], call: StepCall, inputs: Place) -> tuple[tuple[Place, ...], Place]:
    """Where a call puts out the state: what comes second; and where it is given."""
    keys = list(dict.fromkeys(place[1] for place in made if place[0] == OUTPUT and len(place) > 1))
    if len(keys) < 2:
        raise InputError("it puts out no state beside its outputs")
    sources = tuple(place for place in made if place[:2] == (OUTPUT, keys[1]) and is_real(made[place]))
    given = [p for p in call.given if p[0] == ARGUMENTS and p[:3] != inputs[:3] and is_real(call.given[p])]
    return sources, given[0][:3] if given else (ARGUMENTS, 0, 1)


def _values(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list) and not _is_packed(value):
        for part in value:
            yield from _values(part)


def _is_packed(value: Any) -> bool:
    return hasattr(value, "batch_sizes")
