"""Pure functions of JAX, and modules that are made of them, differentiated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from gradscope.checkpoints.derivatives import DIRECT
from gradscope.checkpoints.jax.paths import derivative
from gradscope.checkpoints.pure_steps import Step, Way, flat_rows


def is_array(value: Any) -> bool:
    """Whether a value is an array."""
    return isinstance(value, jax.Array | np.ndarray)


class Jax:
    """See Engine in pure_steps."""

    is_array = staticmethod(is_array)
    array = staticmethod(jax.numpy.asarray)
    compiled = staticmethod(jax.jit)

    @contextmanager
    def precisely(self, *, double: bool) -> Iterator[None]:
        """See Engine; where the user has JAX compute in float64, its own precision is that."""
        wide = double or jax.dtypes.canonicalize_dtype("float64") == "float64"
        with jax.default_matmul_precision("highest"), jax.enable_x64(wide):
            yield

    def ways(self, step: Step, names: Sequence[str]) -> list[Way]:
        """See Engine."""
        by_path, whole = functools.partial(_by_path, step, names), functools.partial(_whole, step)
        return [jax.jit(by_path), jax.jit(whole), whole]


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree, in their order, each with a name of its own."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = ".".join(filter(lambda part: part != "value", map(_key, path)))
        found[name if name not in found else f"{name}_{len(found)}"] = leaf
    return found


def _key(entry: Any) -> str:
    return str(next((getattr(entry, n) for n in ("key", "name", "idx") if hasattr(entry, n)), entry))


def _by_path(
    step: Step,
    names: Sequence[str],
    weights: Sequence[Any],
    given: Sequence[Any],
    state: Sequence[Any],
    draws: Any,
) -> tuple[list[Any], dict[str, Any], Any]:
    """The state after a step, its derivatives (B, m, m) by path, and rows (B, m) through the whole of it."""
    new, back = jax.vjp(functools.partial(step, weights, given), state)
    along = derivative(step, weights, names, given, state)
    batch, size = len(flat_rows(state[0])), sum(flat_rows(part).shape[1] for part in state)
    units = jax.numpy.broadcast_to(jax.numpy.eye(size)[:, None], (size, batch, size))
    moved = jax.vmap(lambda unit: along(_parted(unit, state)))(units)
    found = {}
    for name in dict.fromkeys(name for part in moved for name in part):
        blocks = [
            part[name].reshape(size, batch, -1)
            if name in part
            else jax.numpy.zeros((size, batch, flat_rows(one).shape[1]))
            for part, one in zip(moved, new, strict=True)
        ]
        found[name] = jax.numpy.concatenate(blocks, axis=2).transpose(1, 2, 0)
    return new, found or {DIRECT: jax.numpy.zeros((batch, size, size))}, _through(back, new, draws)


def _whole(
    step: Step,
    weights: Sequence[Any],
    given: Sequence[Any],
    state: Sequence[Any],
    draws: Any,
) -> tuple[list[Any], dict[str, Any], Any]:
    """The same where paths are not told apart."""
    new, back = jax.vjp(functools.partial(step, weights, given), state)
    batch, size = len(flat_rows(new[0])), sum(flat_rows(part).shape[1] for part in new)
    units = jax.numpy.broadcast_to(jax.numpy.eye(size)[:, None], (size, batch, size))
    return new, {DIRECT: _through(back, new, units).transpose(1, 0, 2)}, _through(back, new, draws)


def _through(back: Callable[..., Any], new: Sequence[Any], rows: Any) -> Any:
    """Rows (k, B, m) through a step."""

    def one(row: Any) -> Any:
        return jax.numpy.concatenate([flat_rows(part) for part in back(_parted(row, new))[0]], axis=1)

    return jax.vmap(one)(jax.numpy.asarray(rows))


def _parted(joined: Any, like: Sequence[Any]) -> list[Any]:
    """The parts of a state, in the shapes and dtypes of others, of all of it (B, m)."""
    ends = np.cumsum([flat_rows(part).shape[1] for part in like])[:-1]
    parts = zip(jax.numpy.split(joined, ends, 1), like, strict=True)
    return [part.reshape(one.shape).astype(one.dtype) for part, one in parts]
