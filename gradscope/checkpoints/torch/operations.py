"""What the code of a PyTorch module does, operation by operation: numbered alike whenever it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Protocol

from gradscope.checkpoints.carried import Place, leaves
from gradscope.checkpoints.loops.operation import RESULT, Operation, Value

WRAPPED = (
    "computes within torch.func (vmap, grad, jvp), where its operations are of other tensors than outside: "
    "write the sequences out as an axis of the batch"
)


class Observer(Protocol):
    """Who is told of operations."""

    def before(self, number: int, name: str, given: tuple[Any, Any]) -> tuple[Any, Any]:
        """What an operation is to be given, (arguments, {by name}); also what is none, before the next."""

    def after(
        self, number: int, name: str, given: tuple[Any, Any], result: Any, written: list[Place]
    ) -> None:
        """What it made; written : places of arguments that it changed."""


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch."""
    return hasattr(value, "detach") and hasattr(value, "grad_fn") and not hasattr(value, "batch_sizes")


def observed(observer: Observer) -> Any:
    """A context in which an observer is told of all operations, numbered from zero.

    Those that only look at a tensor (its shape, its dtype) have no number of their own.
    """
    overrides = importlib.import_module("torch.overrides")

    class Observed(overrides.TorchFunctionMode):  # type: ignore[name-defined, misc]
        number = 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(function, "__name__", "")
            if name == "__get__" and not is_tensor(result := function(*args, **(kwargs or {}))):
                return result
            over = name == "__iter__" and args[0].ndim > 0
            given = observer.before(self.number, name, (args, kwargs or {}))
            tensors = dict(leaves(given, is_tensor))
            versions = {place: _version(tensor) for place, tensor in tensors.items()}
            result = given[0][0].unbind(0) if over else function(*given[0], **given[1])
            written = [place for place, tensor in tensors.items() if _version(tensor) != versions[place]]
            if written or any(True for _ in leaves(result, is_tensor)):
                observer.after(self.number, name, given, result, written)
                self.number += 1
            return iter(result) if over else result

    return Observed()


def _version(tensor: Any) -> int:
    with suppress(RuntimeError):  # made in inference mode
        return int(tensor._version)
    return -1


class Tracing:
    """An observer that notes all operations.

    names : {id of a parameter or buffer: its name}; watched : the names of those that may be what a loop uses
    again. unseen : whether what has a gradient came from nowhere; wrapped : whether tensors are those of a
    transformation of torch.func.
    """

    def __init__(self, names: Mapping[int, str], watched: Collection[str]) -> None:
        self.operations: list[Operation] = []
        self.unseen, self.wrapped = False, False
        self._names = names
        self._weights = {key: frozenset([name]) for key, name in names.items() if name in watched}
        self._made: dict[int, Value] = {}
        self._written: dict[int, Value] = {}
        self._held: list[Any] = []  # an id is of one object as long as that is held
        self._differing: set[Place] = set()  # what had a gradient before it was written into
        self._frames: dict[int, int] = {}
        self._above = len(_stack(sys._getframe(1)))

    def before(self, number: int, name: str, given: tuple[Any, Any]) -> tuple[Any, Any]:
        """See Observer."""
        tensors = dict(leaves(given, is_tensor))
        self._differing = {place for place, tensor in tensors.items() if tensor.requires_grad}
        return given

    def after(
        self, number: int, name: str, given: tuple[Any, Any], result: Any, written: list[Place]
    ) -> None:
        """See Observer."""
        tensors = dict(leaves(given, is_tensor))
        made = dict(leaves(result, is_tensor, (RESULT,)))
        self.wrapped |= any(map(_is_wrapped, made.values()))
        known = [self._weights[id(t)] for t in tensors.values() if id(t) in self._weights]
        own = frozenset[str]().union(*known)
        alone = bool(known) and len(known) == len(tensors)
        reads = {
            place: value
            for place, tensor in tensors.items()
            if place in self._differing and id(tensor) not in self._weights and (value := self._value(tensor))
        }
        whole = made | {place: tensors[place] for place in written}
        differs = {place: tuple(t.shape) for place, t in whole.items() if t.requires_grad}
        self._hold(number, tensors, made, written, own if alone else frozenset())
        weights = frozenset() if alone or not differs else own
        met = weights | {self._names[id(t)] for t in tensors.values() if differs and id(t) in self._names}
        stack = _stack(sys._getframe(2))[self._above :]
        self._held += stack
        frames = tuple(self._frames.setdefault(id(frame), len(self._frames)) for frame in stack)
        code = tuple(frame.f_lasti for frame in stack)
        self.operations.append(Operation(name, code, frames, reads if differs else {}, weights, met, differs))

    def _hold(
        self,
        number: int,
        tensors: Mapping[Place, Any],
        made: Mapping[Place, Any],
        written: list[Place],
        weights: frozenset[str],
    ) -> None:
        """Know the values from now on; weights : of which alone they are made."""
        for place in written:
            self._written[_storage(tensors[place])] = (number, place)
        for place, tensor in made.items():
            self._made[id(tensor)] = (number, place)
            if weights:
                self._weights[id(tensor)] = weights
        self._held += [*tensors.values(), *made.values()]

    def _value(self, tensor: Any) -> Value | None:
        """Which value a tensor with a gradient is now."""
        known = [self._made.get(id(tensor)), self._written.get(_storage(tensor))]
        values = [value for value in known if value is not None]
        if not values:
            self.unseen |= tensor.grad_fn is not None
            return None
        number, slot = max(values, key=lambda value: value[0])  # of one operation, what it put out
        self.unseen |= slot not in self.operations[number].made  # it had no gradient then
        return number, slot


def _is_wrapped(tensor: Any) -> bool:
    own = getattr(importlib.import_module("torch")._C, "_functorch", None)
    return own is not None and bool(own.is_functorch_wrapped_tensor(tensor))


def _storage(tensor: Any) -> int:
    with suppress(RuntimeError, NotImplementedError):  # a sparse tensor has none
        return int(tensor.untyped_storage()._cdata)
    return -id(tensor)


def _stack(frame: Any) -> list[Any]:
    """The functions that are running, from the outermost on."""
    found = []
    while frame:
        found.append(frame)
        frame = frame.f_back
    return found[::-1]
