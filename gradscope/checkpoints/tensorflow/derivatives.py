"""Pure functions of TensorFlow differentiated, by the matrix that the state goes through first."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradscope.checkpoints.derivatives import DIRECT, OpaqueError
from gradscope.checkpoints.pure_steps import Step, Way

# Products of a matrix with what may depend on the state.
_PRODUCTS = (
    "MatMul",
    "BatchMatMul",
    "BatchMatMulV2",
    "BatchMatMulV3",
    "Einsum",
    "Conv1D",
    "Conv2D",
    "Conv3D",
)


class TensorFlow:
    """See Engine in pure_steps. Arrays are those of NumPy, outside of functions."""

    def is_array(self, value: Any) -> bool:
        """See Engine."""
        return isinstance(value, np.ndarray) or bool(_tf().is_tensor(value))

    array = staticmethod(np.asarray)

    @contextmanager
    def precisely(self, *, double: bool) -> Iterator[None]:
        """See Engine."""
        del double  # it has float64 anyway
        experimental = _tf().config.experimental
        before = experimental.tensor_float_32_execution_enabled()
        experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            experimental.enable_tensor_float_32_execution(before)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See Engine."""
        return _on_arrays(_tf().function(function, autograph=False))

    def ways(self, step: Step, names: Sequence[str]) -> list[Way]:
        """See Engine."""
        by_path, whole = functools.partial(_by_path, step, names), functools.partial(_whole, step)
        return [self.compiled(by_path), self.compiled(whole), _on_arrays(functools.partial(_taped, step))]


def _tf() -> Any:
    return importlib.import_module("tensorflow")


def _on_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, of arrays."""
    tf = _tf()

    def of_arrays(*arrays: Any) -> Any:
        made = function(*tf.nest.map_structure(tf.convert_to_tensor, list(arrays)))
        return tf.nest.map_structure(np.asarray, made)

    return of_arrays


def _by_path(
    step: Step,
    names: Sequence[str],
    weights: Sequence[Any],
    given: Sequence[Any],
    state: Sequence[Any],
    draws: Any,
) -> tuple[list[Any], dict[str, Any], Any]:
    """The state after a step, its derivatives (B, m, m) by path, and rows (k, B, m) through the whole of it.

    What goes through a product with a matrix first stops at all others on its way there.
    """
    new, state, rows_through = _traced(step, weights, given, state)
    products = _products(new[0].graph, weights, names, given, state)
    made = [product for _, product in products]
    units = _units(state)
    paths = {DIRECT: rows_through(units, stop=made)}
    for k, (name, product) in enumerate(products):
        path = rows_through(units, by=product, stop=made[:k] + made[k + 1 :])
        paths[name] = paths[name] + path if name in paths else path
    return new, {name: _tf().transpose(path, (1, 0, 2)) for name, path in paths.items()}, rows_through(draws)


def _whole(
    step: Step, weights: Sequence[Any], given: Sequence[Any], state: Sequence[Any], draws: Any
) -> tuple[list[Any], dict[str, Any], Any]:
    """The same where paths are not told apart."""
    new, state, rows_through = _traced(step, weights, given, state)
    path = _tf().transpose(rows_through(_units(state)), (1, 0, 2))
    return new, {DIRECT: path}, rows_through(draws)


def _taped(
    step: Step, weights: Sequence[Any], given: Sequence[Any], state: Sequence[Any], draws: Any
) -> tuple[list[Any], dict[str, Any], Any]:
    """That line by line, of a step that looks at numbers as it goes."""
    tf = _tf()
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(state)
        new = step(weights, given, state)

    def through(rows: Any) -> Any:
        found = [
            tape.gradient(new, state, _parted(row, new), unconnected_gradients="zero")
            for row in tf.unstack(rows)
        ]
        return tf.stack([_joined(parts) for parts in found])

    return new, {DIRECT: tf.transpose(through(_units(new)), (1, 0, 2))}, through(draws)


def _traced(
    step: Step, weights: Sequence[Any], given: Sequence[Any], state: Sequence[Any]
) -> tuple[list[Any], list[Any], Callable[..., Any]]:
    """A step in the graph that is made: the state after, that before it, and rows through the step.

    These are (k, B, m), and go through all of it, or by way of one product, and stop at others.
    """
    tf = _tf()
    state = [tf.identity(part) for part in state]
    with tf.compat.v1.get_default_graph().gradient_override_map(_slopes()):
        new = [
            tf.ensure_shape(one, was.shape)
            for one, was in zip(step(weights, given, state), state, strict=True)
        ]
    gradients = functools.partial(tf.gradients, unconnected_gradients="zero")

    def rows_through(rows: Any, by: Any = None, stop: Sequence[Any] = ()) -> Any:
        def one(row: Any) -> Any:
            outer, made = _parted(row, new), new
            if by is not None:
                outer, made = gradients(new, by, outer), by
            return _joined(gradients(made, state, outer, stop_gradients=list(stop)))

        return tf.vectorized_map(one, tf.cast(rows, new[0].dtype), warn=False)

    return new, state, rows_through


def _products(
    graph: Any, weights: Sequence[Any], names: Sequence[str], given: Sequence[Any], state: Sequence[Any]
) -> list[tuple[str, Any]]:
    """What products of a matrix with what depends on the state put out, each with the name of the matrix."""
    # Of every tensor the matrix that it is made of, alone or with constants: "" of none, None of what is not.
    alone = {one.name: name for one, name in zip(weights, names, strict=True)}
    alone |= dict.fromkeys((one.name for one in given), None)
    moving, found = {one.name for one in state}, []
    for operation in graph.get_operations():
        made = [one.name for one in operation.outputs]
        if any(one in alone or one in moving for one in made):
            continue  # what the graph is given
        read = [one.name for one in operation.inputs]
        parts, moves = [alone.get(one, "") for one in read], any(one in moving for one in read)
        matrix = next(filter(None, parts), "")
        if moves and matrix and operation.type in _PRODUCTS:
            found.append((matrix, operation.outputs[0]))
        elif moves and matrix and _holds_a_program(operation):
            raise OpaqueError
        alone |= dict.fromkeys(made, None if moves or None in parts else matrix)
        moving.update(made if moves else ())
    return found


def _holds_a_program(operation: Any) -> bool:
    return any(attribute.HasField("func") for attribute in operation.node_def.attr.values())


def _units(parts: Sequence[Any]) -> Any:
    """(m, B, m): every unit of a state, of every sequence at once."""
    tf, joined = _tf(), _joined(parts)
    batch, size = joined.shape
    return tf.broadcast_to(tf.eye(size, dtype=joined.dtype)[:, None], (size, batch, size))


def _joined(parts: Sequence[Any]) -> Any:
    """(B, m) of the parts of a state, or of one alone."""
    tf = _tf()
    widest = max((part.dtype for part in parts), key=lambda dtype: dtype.size)
    rows = [tf.reshape(part, (1, -1) if part.shape.rank < 2 else (part.shape[0], -1)) for part in parts]
    return tf.concat([tf.cast(one, widest) for one in rows], axis=1)


def _parted(joined: Any, like: Sequence[Any]) -> list[Any]:
    """The inverse, in the shapes and dtypes of others."""
    tf = _tf()
    sizes = [_joined([one]).shape[1] for one in like]
    parts = zip(tf.split(joined, sizes, axis=1), like, strict=True)
    return [tf.cast(tf.reshape(part, one.shape), one.dtype) for part, one in parts]


@functools.cache
def _slopes() -> dict[str, str]:
    """Of what operations a gradient of ours is taken: by what it is registered as.

    Slopes by 1 - y^2 and y (1 - y) have no digits where a unit saturates.
    """
    tf = _tf()

    def of_tanh(operation: Any, grad: Any) -> Any:
        other = tf.sigmoid(-2 * tf.abs(operation.inputs[0]))
        return grad * 4 * other * (1 - other)

    def of_sigmoid(operation: Any, grad: Any) -> Any:
        (a,) = operation.inputs
        return grad * tf.sigmoid(a) * tf.sigmoid(-a)

    found = {}
    for kind, slope in {"Tanh": of_tanh, "Sigmoid": of_sigmoid}.items():
        found[kind] = f"Gradscope{kind}"
        tf.RegisterGradient(found[kind])(slope)
    return found
