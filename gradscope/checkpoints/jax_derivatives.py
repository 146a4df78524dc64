"""A module of JAX' libraries step by recorded step: called again on what it was given, and differentiated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from gradscope.checkpoints.calls import rounding
from gradscope.checkpoints.carried import ARGUMENTS, OUTPUT, Carried, Place, StepCall, leaves, placed
from gradscope.checkpoints.derivatives import (
    DIRECT,
    DRAWS,
    SAFETY,
    SUM_ROUNDINGS,
    Derivatives,
    Linearised,
    OwnSteps,
    check_jacobians,
    gap,
    own_steps,
)
from gradscope.checkpoints.jax_paths import derivative
from gradscope.checkpoints.jax_steps import is_float
from gradscope.custom_types import Array
from gradscope.errors import InputError, reason

# weights, arguments, {by name} -> what the module puts out: pure.
Pure = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]


def is_array(value: Any) -> bool:
    """Whether a value is an array."""
    return isinstance(value, jax.Array | np.ndarray)


def equal(one: Any, other: Any) -> bool:
    """Whether two arrays are real numbers and the same ones."""
    alike = is_float(one) and one.shape == other.shape and one.size > 0
    return alike and bool(np.array_equal(np.asarray(one), np.asarray(other)))


class JaxSteps(Derivatives):
    """Of a module that is called step by step.

    call : the module; weights : a tree of its arrays; calls, state : as for TorchSteps.
    """

    def __init__(
        self,
        by: str,
        kind: str,
        call: Pure,
        weights: Any,
        calls: Sequence[StepCall],
        state: Carried,
        *,
        fed_back: bool,
    ) -> None:
        self.by, self.kind, self.fed_back = by, kind, fed_back
        self._call, self._weights, self._calls, self._state = call, weights, calls, state

    def weights(self) -> dict[str, Array]:
        """See Derivatives."""
        every = jax.tree_util.tree_flatten_with_path(self._weights)[0]
        return {_name(path): np.asarray(leaf, np.float64) for path, leaf in every if is_float(leaf)}

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
        rows = [_rows(self._calls[0].made[source]) for source in self._state.sources]
        matrices = 1 + sum(np.ndim(leaf) > 1 for leaf in jax.tree.leaves(self._weights))
        check_jacobians(len(rows[0]), len(self._calls), matrices, sum(row.shape[1] for row in rows))
        with jax.default_matmul_precision("highest"):
            for dtype in ("float64", "own"):
                with jax.enable_x64(dtype == "float64"):
                    if found := self._along(dtype):
                        return found
        raise InputError(
            "puts out something else when it is called once more on the same: it draws random numbers, or "
            "keeps a state where that is not seen"
        )

    def _along(self, dtype: str) -> OwnSteps | None:
        """The steps in a dtype, None where the module is another there."""
        weights = [_cast(leaf, dtype) for leaf in jax.tree.leaves(self._weights)]
        used = [*jax.tree.leaves(self._weights), *self._calls[0].made.values()]
        own = max((rounding(str(leaf.dtype)) for leaf in used if is_float(leaf)), default=2.0**-23)
        stepper = _Stepper(self._call, self._weights, weights, self._state, dtype, own)
        try:
            if not all(stepper.repeats(call) for call in self._calls):
                return None
        except Exception as error:  # the user's code may fail in any way
            if dtype == "float64":
                return None
            why = f"{type(error).__name__}: {reason(error)}"
            raise InputError(f"cannot be called once more: {why}") from error
        first = self._calls[0]
        state, found = self._state_of(first, dtype), []
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
        return {name: _rows(part).shape[1] for name, part in zip(names, state, strict=True)}

    def _state_of(self, call: StepCall, dtype: str) -> list[Any]:
        found: dict[int, Any] = {}
        for place, part in self._state.places.items():
            found.setdefault(part, _cast(call.given[place], dtype))
        return [found[part] for part in range(len(self._state.sources))]


@dataclass
class _Form:
    """One way in which a module is called, compiled once.

    arguments : what of them are no arrays; places : where the arrays are; puts_out : where those are that it
        puts out, once it has been called.
    """

    arguments: tuple[Any, Any]
    places: tuple[Place, ...]
    made: Callable[..., Any]
    ways: list[Callable[..., Any]]
    puts_out: list[Place] = field(default_factory=list)


class _Stepper:
    """Calls a module again with other arrays.

    tree : of its weights, that these are the leaves of; own : the rounding of what it computes in by itself,
        rounding : of what it computes in here.
    """

    def __init__(
        self, call: Pure, tree: Any, weights: Sequence[Any], state: Carried, dtype: str, own: float
    ) -> None:
        self.rounding, self._own = 2.0**-52 if dtype == "float64" else own, own
        self._call, self._weights, self._state, self._dtype = call, weights, state, dtype
        self._tree = jax.tree.structure(tree)
        self._names = _matrices(tree)
        self._forms: list[_Form] = []

    def repeats(self, call: StepCall) -> bool:
        """Whether a call puts out what it did, but for what rounding explains."""
        generator = np.random.default_rng(0)
        exact, again, *shaken = [self._made(call, g) for g in [None, None, *[generator] * DRAWS]]
        for place, theirs in call.made.items():
            if not is_float(theirs):
                continue
            ours, numbers = np.asarray(exact[place], np.float64), np.asarray(theirs, np.float64)
            if self._dtype == "float64" and str(exact[place].dtype) != "float64":
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
        given = [_cast(array, self._dtype) for array in call.given.values()]
        batch = len(_rows(state[0]))
        draw = np.random.default_rng(1).standard_normal((batch, _joined(state).shape[1]))
        alone = draw * (np.arange(batch) == 0)[:, None]
        while True:
            try:
                new, paths, rows = form.ways[0](self._weights, given, list(state), np.stack([draw, alone]))
                paths = {name: np.asarray(path, np.float64) for name, path in paths.items()}
                if self._adds_up(paths, draw, np.asarray(rows[0])) or len(form.ways) < len(_WAYS):
                    break
            except Exception as error:  # code that JAX cannot trace, or in which paths cannot be told apart
                if len(form.ways) == 1:
                    why = f"{type(error).__name__}: {reason(error)}"
                    raise InputError(f"cannot be differentiated: {why}") from error
            del form.ways[0]
        if np.asarray(rows[1])[1:].any():
            raise InputError("mixes the sequences of its batch: give a batch of one")
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
        given = [_cast(_shaken(array, generator), self._dtype) for array in call.given.values()]
        try:
            made = form.made(self._weights, given)
        except jax.errors.JAXTypeError:  # it looks at numbers as it goes
            form.made = functools.partial(self._run, form)
            made = form.made(self._weights, given)
        return dict(zip(form.puts_out, made, strict=True))

    def _form(self, call: StepCall) -> _Form:
        places = tuple(call.given)
        for form in self._forms:
            if form.places == places and _same(form.arguments, call.arguments):
                return form
        form = _Form(call.arguments, places, lambda: None, [])
        form.made = jax.jit(functools.partial(self._run, form))
        form.ways = [functools.partial(way, functools.partial(self._step, form)) for way in _WAYS]
        form.ways[0] = jax.jit(functools.partial(form.ways[0], self._names))
        form.ways[1] = jax.jit(form.ways[1])
        self._forms.append(form)
        return form

    def _run(self, form: _Form, weights: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """The arrays that a call puts out."""
        tensors = {place[1:]: array for place, array in zip(form.places, given, strict=True)}
        args, keywords = placed(form.arguments, tensors)
        made = dict(leaves(self._call(jax.tree.unflatten(self._tree, weights), args, keywords), is_array))
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


def _by_path(
    step: Callable[..., list[Any]],
    names: Sequence[str],
    weights: Sequence[Any],
    given: Sequence[Any],
    state: Sequence[Any],
    draws: Any,
) -> tuple[list[Any], dict[str, Any], Any]:
    """The state after a step, its derivatives (B, m, m) by path, and rows (B, m) through the whole of it."""
    new, back = jax.vjp(functools.partial(step, weights, given), state)
    along = derivative(step, weights, names, given, state)
    batch, size = len(_rows(state[0])), sum(_rows(part).shape[1] for part in state)
    units = jax.numpy.broadcast_to(jax.numpy.eye(size)[:, None], (size, batch, size))
    moved = jax.vmap(lambda unit: along(_parted(unit, state)))(units)
    found = {}
    for name in dict.fromkeys(name for part in moved for name in part):
        blocks = [
            part[name].reshape(size, batch, -1)
            if name in part
            else jax.numpy.zeros((size, batch, _rows(one).shape[1]))
            for part, one in zip(moved, new, strict=True)
        ]
        found[name] = jax.numpy.concatenate(blocks, axis=2).transpose(1, 2, 0)
    return new, found or {DIRECT: jax.numpy.zeros((batch, size, size))}, _through(back, new, draws)


def _whole(
    step: Callable[..., list[Any]],
    weights: Sequence[Any],
    given: Sequence[Any],
    state: Sequence[Any],
    draws: Any,
) -> tuple[list[Any], dict[str, Any], Any]:
    """The same where paths are not told apart."""
    new, back = jax.vjp(functools.partial(step, weights, given), state)
    batch, size = len(_rows(new[0])), sum(_rows(part).shape[1] for part in new)
    units = jax.numpy.broadcast_to(jax.numpy.eye(size)[:, None], (size, batch, size))
    return new, {DIRECT: _through(back, new, units).transpose(1, 0, 2)}, _through(back, new, draws)


# How a call is differentiated: the first that it lets happen; the last of them runs line by line.
_WAYS: tuple[Callable[..., Any], ...] = (_by_path, _whole, _whole)


def _through(back: Callable[..., Any], new: Sequence[Any], rows: Any) -> Any:
    """Rows (k, B, m) through a step."""

    def one(row: Any) -> Any:
        return jax.numpy.concatenate([_rows(part) for part in back(_parted(row, new))[0]], axis=1)

    return jax.vmap(one)(jax.numpy.asarray(rows))


def _parted(joined: Any, like: Sequence[Any]) -> list[Any]:
    """The parts of a state, in the shapes and dtypes of others, of all of it (B, m)."""
    ends = np.cumsum([_rows(part).shape[1] for part in like])[:-1]
    parts = zip(jax.numpy.split(joined, ends, 1), like, strict=True)
    return [part.reshape(one.shape).astype(one.dtype) for part, one in parts]


def _matrices(tree: Any) -> list[str]:
    """Of every leaf the name of a matrix, "" of what is none."""
    return [
        "" if np.ndim(leaf) < 2 else _name(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _name(path: Sequence[Any]) -> str:
    return ".".join(part for part in map(_key, path) if part != "value")


def _key(entry: Any) -> str:
    return str(next((getattr(entry, n) for n in ("key", "name", "idx") if hasattr(entry, n)), entry))


def _same(one: Any, other: Any) -> bool:
    """Whether arguments that are no arrays are alike; where that cannot be told they are not."""
    try:
        return bool(one == other)
    except Exception:  # values of any kind
        return False


def _cast(array: Any, dtype: str) -> Any:
    if not is_array(array):
        return array
    if dtype == "float64" and is_float(array):
        return jax.numpy.asarray(np.asarray(array, np.float64))
    return jax.numpy.asarray(array)


def _shaken(array: Any, generator: np.random.Generator | None) -> Any:
    if generator is None or not is_float(array):
        return array
    signs = generator.choice([-1.0, 1.0], array.shape)
    numbers = np.asarray(array, np.float64) * (1 + rounding(str(array.dtype)) * signs)
    return numbers if str(array.dtype) == "float64" else jax.numpy.asarray(numbers)


def _rows(array: Any) -> Any:
    """(B, numbers) of an array with the sequences along its first axis, or of one alone."""
    return array.reshape(1, -1) if array.ndim < 2 else array.reshape(len(array), -1)


def _joined(parts: Sequence[Any]) -> Array:
    """(B, m) of the parts of a state."""
    return np.concatenate([np.asarray(_rows(part), np.float64) for part in parts], axis=1)
