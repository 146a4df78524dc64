"""One forward pass of a Flax model, in which its recurrent cells note what every step reads and puts out."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gradscope.checkpoints.found import Found
from gradscope.checkpoints.jax.steps import CellSteps, Stacked, call_model, recorded_steps, wrapped
from gradscope.checkpoints.recording import Recorded
from gradscope.errors import quoted

_BATCH = "batch is what the model is called with: an array, a tuple of arguments, or a dict of them by name"
_CALLED = "a cell is recorded where it is called as Flax' own, (carry, inputs)"
# The attribute of a module of nnx that says its path: a copy of it, such as in a scan, has it too.
_PATH = "_gradscope_path"


def nnx_recorded(source: str, model: Any, batch: Any, layers: Sequence[Found]) -> Recorded:
    """What the cells of a module of nnx read and put out as a copy of it runs over a batch, in eval mode.

    Raises InputError where the forward pass fails.
    """
    return recorded_steps(source, layers, partial(_nnx, model, batch), _BATCH)


def linen_recorded(
    source: str, model: Any, batch: Any, layers: Sequence[Found]
) -> tuple[Recorded, dict[str, Any]]:
    """The same of a module of linen that is bound to its variables, and its cells by name."""
    cells: dict[str, Any] = {}
    return recorded_steps(source, layers, partial(_linen, model, batch, cells), _BATCH), cells


@contextmanager
def _nnx(model: Any, batch: Any, steps: CellSteps) -> Iterator[Callable[[], Any]]:
    nnx = sys.modules["flax.nnx"]
    copy, cells, rnns = _copied(model, steps.weights)
    with ExitStack() as within:
        plain = nnx.RNN.__call__
        within.enter_context(wrapped(cells, "__call__", partial(_cell, steps)))
        within.enter_context(wrapped(rnns, "__call__", partial(_rnn, steps, plain)))
        yield partial(call_model, copy, batch)


@contextmanager
def _linen(model: Any, batch: Any, cells: dict[str, Any], steps: CellSteps) -> Iterator[Callable[[], Any]]:
    linen = importlib.import_module("flax.linen")
    heard = _Interceptor(steps, linen.RNN.__call__, cells)
    with linen.intercept_methods(heard):
        yield partial(call_model, model, batch)


def _copied(model: Any, names: Collection[str]) -> tuple[Any, set[type], set[type]]:
    """A copy in eval mode that knows the paths of its cells; the classes of cells, and of what scans them."""
    nnx = sys.modules["flax.nnx"]
    copy = nnx.clone(model)
    copy.eval()
    cells, rnns = set(), set()
    for path, module in list(nnx.iter_graph(copy)):
        if (name := ".".join(map(str, path))) in names:
            setattr(module, _PATH, name)
            cells.add(type(module))
        elif isinstance(module, nnx.RNN):
            rnns.add(type(module))
    return copy, cells, rnns


def _cell(steps: CellSteps, module: Any, own: Callable[..., Any], args: Any, keywords: Any) -> Any:
    """The call of a cell of nnx."""
    result, name = own(*args, **keywords), getattr(module, _PATH, None)
    return result if name is None else _heard(steps, name, module, own, args, keywords, result)


def _rnn(
    steps: CellSteps, plain: Any, module: Any, own: functools.partial[Any], args: Any, keywords: Any
) -> Any:
    """The call of an RNN of nnx; plain : what one of Flax' own does."""
    name = getattr(module.cell, _PATH, "") if own.func is plain else ""
    return _scanned(steps, name, module, own, args, keywords)


@dataclass
class _Interceptor:
    """What linen calls in place of the methods of modules.

    plain : what an RNN of Flax' own does; cells : by name, as they are met; inside : those that are running.
    """

    steps: CellSteps
    plain: Any
    cells: dict[str, Any]
    inside: set[str] = field(default_factory=set)

    def __call__(self, own: Callable[..., Any], args: Any, keywords: Any, context: Any) -> Any:
        module, kind = context.module, type(context.module)
        if context.method_name != "__call__":
            return own(*args, **keywords)
        if kind.__call__ is self.plain:
            name = _path(module.cell)
            stacks = name if name in self.steps.weights else ""
            return _scanned(self.steps, stacks, module, own, args, keywords)
        name = _path(module)
        if name not in self.steps.weights or name in self.inside:  # by super()
            return own(*args, **keywords)
        self.cells[name] = module
        self.inside.add(name)
        try:
            result = own(*args, **keywords)
        finally:
            self.inside.discard(name)
        return _heard(self.steps, name, module, partial(kind.__call__, module), args, keywords, result)


def _path(module: Any) -> str:
    """What the layer of a module of linen is called, by where its parameters are."""
    return ".".join(("params", *module.path)) if module.scope is not None else ""


def _heard(steps: CellSteps, name: str, module: Any, own: Any, args: Any, keywords: Any, result: Any) -> Any:
    """Note a call of a cell, (carry, inputs) -> (carry, output), and give back what it is to put out."""
    try:
        before, inputs, *_ = inspect.signature(own).bind(*args, **keywords).arguments.values()
        after, output = result
    except (TypeError, ValueError):
        steps.fail(name, f"puts out {quoted(result)}: {_CALLED}")
        return result
    dtype = getattr(module, "dtype", None)
    return steps.step(name, inputs, _states(before), output, _states(after), result, dtype)


def _states(carry: Any) -> tuple[Any, ...]:
    """h, and c of an LSTM, whose carry has c first."""
    return tuple(reversed(carry)) if isinstance(carry, tuple | list) else (carry,)


def _scanned(
    steps: CellSteps, stacks: str, rnn: Any, own: Callable[..., Any], args: Any, keywords: Any
) -> Any:
    """Note what Flax' RNN does; stacks : its cell, which is to put out all that it does, or ""."""
    given = inspect.signature(type(rnn).__call__).bind(rnn, *args, **keywords).arguments
    reverse, keep_order, time_major = (
        getattr(rnn, name) if (said := given.get(name)) is None else said
        for name in ("reverse", "keep_order", "time_major")
    )
    lengths = given.get("seq_lengths")
    with steps.scan(lengths, stacks):
        result = own(*args, **keywords)
    carry, stack = (None, result) if isinstance(result, Stacked) or not isinstance(result, tuple) else result
    if not isinstance(stack, Stacked):
        return result
    steps.stacked(stacks, stack, lengths, time_major=time_major, turned=reverse and keep_order)
    return stack.given_out if carry is None else (carry, stack.given_out)
