"""A model of Keras as a function of its weights, in which JAX sees the loops that it writes itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradscope.checkpoints.found import Found
from gradscope.checkpoints.keras.steps import having
from gradscope.checkpoints.recording import Recorded


def with_bare_loops(
    keras: Any,
    source: str,
    model: Any,
    batch: Any,
    named: Iterable[tuple[str, Any]],
    layers: Sequence[Found],
    recording: Recorded,
) -> tuple[tuple[Found, ...], Recorded]:
    """The layers and their recording, with the loops of a model that runs on JAX; see ``with_loops``.

    named : its variables with their names in its checkpoint.
    """
    if keras.backend.backend() != "jax":
        return tuple(layers), recording
    from gradscope.checkpoints.jax.own_loops import PureModel, with_loops

    known = {id(variable): name for name, variable in named}
    variables = {known.get(id(one), one.path): one for one in model.variables}
    own = dict(variables)

    def call(arrays: Sequence[Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        values = {id(variable): array for variable, array in zip(own.values(), arrays, strict=True)}
        with having(keras, model, [values[id(one)] for one in model.variables]):
            return model(*args, **keywords, training=False)

    weights = {name: keras.ops.convert_to_numpy(one.value) for name, one in variables.items()}
    kinds = {part.name: type(part).__name__ for part in model._flatten_layers(include_self=False)}
    pure = PureModel(call, weights, lambda name: kinds.get(name, type(model).__name__), "keras")
    arguments = inspect.signature(model.call).parameters
    by_name = isinstance(batch, dict) and bool(batch) and batch.keys() <= arguments.keys()
    return with_loops(source, pure, batch if by_name else (batch,), layers, recording)
