"""One forward pass of a Flax model, in which its recurrent cells note what every step reads and puts out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from gradscope.checkpoints.calls import Heard, reads_its_own, recordings, run_failed
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.recording import Recorded
from gradscope.errors import quoted

_BATCH = "batch is what the model is called with: an array, a tuple of arguments, or a dict of them by name"
_CALLED = "a cell is recorded where it is called as Flax' own, (carry, inputs)"
# The attribute of a module that says its path: a copy of it, such as in a scan, has it too.
_PATH = "_gradscope_path"


def nnx_recorded(source: str, model: Any, batch: Any, layers: Sequence[Found]) -> Recorded:
    """What the cells of a module of nnx read and put out as a copy of it runs over a batch, in eval mode.

    Raises InputError where the forward pass fails.
    """

    def run(pushed: str | None = None) -> dict[str, Heard]:
        from gradscope.checkpoints.jax_steps import CellSteps, line_by_line, wrapped

        steps = CellSteps({layer.name: layer.dtype for layer in layers if not layer.problem}, pushed)
        try:
            copy, cells, rnns = _copied(model, steps.weights)
            with ExitStack() as within:
                within.enter_context(line_by_line())
                within.enter_context(wrapped(cells, "__call__", partial(_cell, steps)))
                rnn = sys.modules["flax.nnx"].RNN.__call__
                within.enter_context(wrapped(rnns, "__call__", partial(_rnn, steps, rnn)))
                call(copy, batch)
        except Exception as error:  # the user's code may fail in any way
            raise run_failed(source, error, _BATCH) from error
        return steps.heard([layer.name for layer in layers if layer.direction == "backward"])

    heard = run()
    return recordings(
        layers,
        lambda layer: layer.name,
        heard,
        lambda name, _: reads_its_own(heard[name], run(name)[name]),
    )


def call(model: Any, batch: Any) -> Any:
    """What a model makes of a batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


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


def _cell(steps: Any, module: Any, own: Callable[..., Any], args: Any, keywords: Any) -> Any:
    result = own(*args, **keywords)
    name = getattr(module, _PATH, None)
    if name is None:
        return result
    return heard_step(steps, name, own, args, keywords, result, getattr(module, "dtype", None))


def heard_step(
    steps: Any, name: str, own: Callable[..., Any], args: Any, keywords: Any, result: Any, dtype: Any
) -> Any:
    """Note a call of a cell, (carry, inputs) -> (carry, output), and give back what it is to put out."""
    try:
        before, inputs, *_ = inspect.signature(own).bind(*args, **keywords).arguments.values()
        after, output = result
    except (TypeError, ValueError):
        steps.fail(name, f"puts out {quoted(result)}: {_CALLED}")
        return result
    return steps.step(name, inputs, _states(before), output, _states(after), result, dtype)


def _states(carry: Any) -> tuple[Any, ...]:
    """h, and c of an LSTM, whose carry has c first."""
    return tuple(reversed(carry)) if isinstance(carry, tuple | list) else (carry,)


def _rnn(
    steps: Any, plain: Callable[..., Any], module: Any, own: Callable[..., Any], args: Any, keywords: Any
) -> Any:
    """plain : what an RNN of Flax' own does."""
    name = getattr(module.cell, _PATH, "") if own.func is plain else ""  # type: ignore[attr-defined]
    return heard_scan(steps, name, module, own, args, keywords)


def heard_scan(steps: Any, stacks: str, rnn: Any, own: Callable[..., Any], args: Any, keywords: Any) -> Any:
    """Note what Flax' RNN does; stacks : its cell, which is to put out all that it does, or ""."""
    from gradscope.checkpoints.jax_steps import Stacked

    given = inspect.signature(own).bind(*args, **keywords).arguments
    reverse, keep_order, time_major = (
        getattr(rnn, name) if (said := given.get(name)) is None else said
        for name in ("reverse", "keep_order", "time_major")
    )
    lengths = given.get("seq_lengths")
    with steps.scan(lengths, stacks):
        result = own(*args, **keywords)
    if not stacks:
        return result
    carry, stack = (None, result) if isinstance(result, Stacked) else result
    steps.stacked(stacks, stack, lengths, time_major=time_major, turned=reverse and keep_order)
    return stack.given_out if carry is None else (carry, stack.given_out)
