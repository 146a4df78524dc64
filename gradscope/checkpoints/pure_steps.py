"""A module that is a pure function of its weights: called again step by recorded step, and differentiated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gradscope.checkpoints.calls import rounding
from gradscope.checkpoints.carried import ARGUMENTS, OUTPUT, Carried, Place, StepCall, leaves, placed
from gradscope.checkpoints.derivatives import (
    DRAWS,
    SAFETY,
    SUM_ROUNDINGS,
    Derivatives,
    Linearised,
    OwnSteps,
    check_jacobians,
    check_way_back,
    gap,
    halved_rows,
    own_steps,
)
from gradscope.checkpoints.jax.steps import is_float
from gradscope.custom_types import Array
from gradscope.errors import InputError, reason

# The leaves of the weights, arguments, {by name} -> what the module puts out: pure.
Pure = Callable[[Sequence[Any], Sequence[Any], Mapping[str, Any]], Any]
# weights, given, state -> the state after a step, as lists of arrays.
Step = Callable[..., list[Any]]
# weights, given, state, rows (k, B, m) -> the state after, derivatives (B, m, m) by path, rows through it.
Way = Callable[..., tuple[Sequence[Any], Mapping[str, Any], Any]]


def equal(one: Any, other: Any) -> bool:
    """Whether two arrays are real numbers and the same ones."""
    alike = is_float(one) and one.shape == other.shape and one.size > 0
    return alike and bool(np.array_equal(np.asarray(one), np.asarray(other)))


class Engine(Protocol):
    """What runs pure functions, and differentiates them."""

    def is_array(self, value: Any) -> bool:
        """Whether a value is an array, while functions are traced too."""

    def array(self, numbers: Any) -> Any:
        """The array that functions are called with."""

    def precisely(self, *, double: bool) -> AbstractContextManager[Any]:
        """Within, float32 is float32, and with ``double`` float64 is float64."""

    def compiled(self, function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        """A function of lists of arrays, compiled at its first call."""

    def ways(self, step: Step, names: Sequence[str]) -> list[Way]:
        """How a step is differentiated: first by path, last line by line.

        names : of the weights that are matrices, "" of others.
        """


class PureSteps(Derivatives):
    """Of a module that is called step by step.

    call : the module; weights : its arrays by their names; calls, state : as for TorchSteps.
    precisions : in which of them it is tried whether it computes the same, float64 or not.
    """

    precisions: tuple[bool, ...] = (True, False)

    def __init__(
        self,
        engine: Engine,
        by: str,
        kind: str,
        call: Pure,
        weights: Mapping[str, Any],
        calls: Sequence[StepCall],
        state: Carried,
        *,
        fed_back: bool,
    ) -> None:
        self.by, self.kind, self.fed_back = by, kind, fed_back
        self._engine, self._call, self._weights = engine, call, weights
        self._calls, self._state = calls, state

    def weights(self) -> dict[str, Array]:
        """See Derivatives."""
        return {name: np.asarray(one, np.float64) for name, one in self._weights.items() if is_float(one)}

    @property
    def states(self) -> list[list[Array]]:
        """Of every part of the state, what each call put out."""
        return [[np.asarray(call.made[s], np.float64) for call in self._calls] for s in self._state.sources]

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        shapes = {tuple(call.made[s].shape for s in self._state.sources) for call in self._calls}
        if len(shapes) > 1:
            raise InputError(
                "puts out states of several shapes: expected as many sequences and units each time"
            )
        rows = [flat_rows(self._calls[0].made[source]) for source in self._state.sources]
        matrices = 1 + sum(map(bool, self._matrices))
        check_jacobians(len(rows[0]), len(self._calls), matrices, sum(row.shape[1] for row in rows))
        for double in self.precisions:
            with self._engine.precisely(double=double):
                if found := self._along(double=double):
                    return found
        raise InputError(
            "puts out something else when it is called once more on the same: it draws random numbers, or "
            "keeps a state where that is not seen"
        )

    def second_call(self) -> tuple[int, Pure, Mapping[str, Any], Any]:
        """See Derivatives."""
        call = self._calls[1]
        tensors = {place[1:]: array for place, array in call.given.items()}
        both = placed(call.arguments, tensors)
        return len(self._calls), lambda weights, args, _: self._call(weights, *args), self._weights, both

    @property
    def _matrices(self) -> list[str]:
        """The names of the weights that are matrices, "" of others."""
        return [name if np.ndim(weight) > 1 else "" for name, weight in self._weights.items()]

    def _along(self, *, double: bool) -> OwnSteps | None:
        """The steps, in float64 or in its own precision; None where the module is another there."""
        used = [*self._weights.values(), *self._calls[0].made.values()]
        own = max((rounding(str(leaf.dtype)) for leaf in used if is_float(leaf)), default=2.0**-23)
        weights = [*self._weights.values()]
        stepper = _Stepper(self._engine, self._call, weights, self._matrices, self._state, own, double=double)
        try:
            if not all(stepper.repeats(call) for call in self._calls):
                return None
        except Exception as error:  # the user's code may fail in any way
            if double:
                return None
            why = f"{type(error).__name__}: {reason(error)}"
            raise InputError(f"cannot be called once more: {why}") from error
        first = self._calls[0]
        state, found = stepper.state_before(first), []
        for call in self._calls:
            state, step = stepper.linearised(call, state)
            found.append(step)
        features = next((int(a.shape[-1]) for p, a in first.given.items() if self._is_input(p, a)), 1)
        return own_steps(found, self._parts(state), features, stepper.rounding)

    def _is_input(self, place: Place, array: Any) -> bool:
        return (
            place[0] == ARGUMENTS and place not in self._state.places and is_float(array) and array.ndim > 0
        )

    def _parts(self, state: Sequence[Any]) -> dict[str, int]:
        """Sizes of the parts of the state: h is what the module puts out beside the state, or last of it."""
        outputs = [a for p, a in self._calls[0].made.items() if p not in self._state.sources and is_float(a)]
        made = [self._calls[0].made[source] for source in self._state.sources]
        out = [k for k, part in enumerate(made) if any(equal(part, output) for output in outputs)]
        names = ["h" if out and k == out[0] else f"s{k}" for k in range(len(made))]
        return {name: flat_rows(part).shape[1] for name, part in zip(names, state, strict=True)}


@dataclass
class _Form:
    """One way in which a module is called, compiled once.

    arguments : what of them are no arrays; places : where the arrays are; whole : whether its paths are told
        apart no longer; puts_out : where those are that it puts out, once it has been called.
    """

    arguments: tuple[Any, Any]
    places: tuple[Place, ...]
    made: Callable[..., Any]
    ways: list[Way]
    whole: bool = False
    puts_out: list[Place] = field(default_factory=list)


class _Stepper:
    """Calls a module again with other arrays, in float64 if ``double``.

    own : the rounding of what it computes in by itself, rounding : of what it computes in here.
    """

    def __init__(
        self,
        engine: Engine,
        call: Pure,
        weights: Sequence[Any],
        names: Sequence[str],
        state: Carried,
        own: float,
        *,
        double: bool,
    ) -> None:
        self.rounding, self._own = 2.0**-52 if double else own, own
        self._engine, self._call, self._names, self._double = engine, call, names, double
        self._weights, self._state = [self._array(weight) for weight in weights], state
        self._forms: list[_Form] = []

    def state_before(self, call: StepCall) -> list[Any]:
        """The parts of the state that a call is given."""
        found: dict[int, Any] = {}
        for place, part in self._state.places.items():
            found.setdefault(part, self._array(call.given[place]))
        return [found[part] for part in range(len(self._state.sources))]

    def _array(self, array: Any, generator: np.random.Generator | None = None) -> Any:
        """An array to call it with; with a generator shaken by one rounding of its own dtype."""
        if not is_float(array):
            return self._engine.array(array)
        numbers = np.asarray(array, np.float64)
        if generator is not None:
            numbers = numbers * (1 + rounding(str(array.dtype)) * generator.choice([-1.0, 1.0], array.shape))
        return self._engine.array(numbers if self._double else numbers.astype(array.dtype))

    def repeats(self, call: StepCall) -> bool:
        """Whether a call puts out what it did, but for what rounding explains."""
        generator = np.random.default_rng(0)
        exact, again, *shaken = [self._made(call, g) for g in [None, None, *[generator] * DRAWS]]
        for place, theirs in call.made.items():
            if not is_float(theirs):
                continue
            ours, numbers = np.asarray(exact[place], np.float64), np.asarray(theirs, np.float64)
            if self._double and str(exact[place].dtype) != "float64":
                return False
            moved = max(np.abs(np.asarray(one[place], np.float64) - ours).max() for one in shaken)
            unit = rounding(str(theirs.dtype)) * np.abs(numbers).max()
            if not np.array_equal(ours, np.asarray(again[place], np.float64)):
                return False
            if not np.abs(ours - numbers).max() <= SAFETY * (moved + unit):
                return False
        return True

    def linearised(self, call: StepCall, state: Sequence[Any]) -> tuple[list[Any], Linearised]:
        """The state after a call, and the call differentiated by that before it."""
        form = self._form(call)
        given = [self._array(array) for array in call.given.values()]
        batch = len(flat_rows(state[0]))
        draw = np.random.default_rng(1).standard_normal((batch, _joined(state).shape[1]))
        both = np.stack([draw, halved_rows(draw)])
        while True:
            try:
                new, paths, rows = form.ways[0](self._weights, given, list(state), both)
                paths = {name: np.asarray(path, np.float64) for name, path in paths.items()}
                if self._adds_up(paths, draw, np.asarray(rows[0])) or form.whole:
                    break
            except Exception as error:  # code that cannot be traced, or in which paths cannot be told apart
                if len(form.ways) == 1:
                    why = f"{type(error).__name__}: {reason(error)}"
                    raise InputError(f"cannot be differentiated: {why}") from error
            del form.ways[0]
            form.whole = True
        whole, parts = np.asarray(rows, np.float64)

        def back(row: Array) -> Array:
            again = form.ways[0](self._weights, given, list(state), np.stack([row, row]))
            return np.asarray(again[2][0], np.float64)

        check_way_back(draw, whole, parts, back)
        return list(new), Linearised(_joined(state), _joined(new), paths)

    def _adds_up(self, paths: Mapping[str, Array], row: Array, whole: Array) -> bool:
        """Whether a random row (B, m) through the paths is that through the step as it is.

        Where it is so to the digits of float32 alone, the module computes in float32 on its way.
        """
        apart, coarse = gap(row, paths, whole), max(self.rounding, self._own)
        if apart <= SUM_ROUNDINGS * coarse:
            self.rounding = self.rounding if apart <= SUM_ROUNDINGS * self.rounding else coarse
            return True
        return False

    def _made(self, call: StepCall, generator: np.random.Generator | None) -> dict[Place, Any]:
        """What a call puts out, by place; with a generator its arguments are shaken by a rounding."""
        form = self._form(call)
        given = [self._array(array, generator) for array in call.given.values()]
        try:
            made = form.made(self._weights, given)
        except Exception:  # it looks at numbers as it goes
            form.made = functools.partial(self._run, form)
            made = form.made(self._weights, given)
        return dict(zip(form.puts_out, made, strict=True))

    def _form(self, call: StepCall) -> _Form:
        places = tuple(call.given)
        for form in self._forms:
            if form.places == places and _same(form.arguments, call.arguments):
                return form
        form = _Form(call.arguments, places, lambda: None, [])
        form.made = self._engine.compiled(functools.partial(self._run, form))
        form.ways = self._engine.ways(functools.partial(self._step, form), self._names)
        self._forms.append(form)
        return form

    def _run(self, form: _Form, weights: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """The arrays that a call puts out."""
        tensors = {place[1:]: array for place, array in zip(form.places, given, strict=True)}
        args, keywords = placed(form.arguments, tensors)
        made = dict(leaves(self._call(weights, args, keywords), self._engine.is_array))
        form.puts_out = [(OUTPUT, *place) for place in made]
        return list(made.values())

    def _step(
        self, form: _Form, weights: Sequence[Any], given: Sequence[Any], state: Sequence[Any]
    ) -> list[Any]:
        """The state after a call, of that before it."""
        parts = [self._state.places.get(place) for place in form.places]
        arrays = [array if part is None else state[part] for array, part in zip(given, parts, strict=True)]
        made = self._run(form, weights, arrays)
        return [made[form.puts_out.index(source)] for source in self._state.sources]


def _same(one: Any, other: Any) -> bool:
    """Whether arguments that are no arrays are alike; where that cannot be told they are not."""
    try:
        return bool(one == other)
    except Exception:  # values of any kind
        return False


def flat_rows(array: Any) -> Any:
    """(B, numbers) of an array with the sequences along its first axis, or of one alone."""
    return array.reshape(1, -1) if array.ndim < 2 else array.reshape(len(array), -1)


def _joined(parts: Sequence[Any]) -> Array:
    """(B, m) of the parts of a state."""
    return np.concatenate([np.asarray(flat_rows(part), np.float64) for part in parts], axis=1)
