"""A model in memory of whatever library: its own reader reads it."""

from __future__ import annotations

from typing import Any

from gradscope.checkpoints.live import Live, wrong
from gradscope.formats.reading import load

# The package that a model's class, or one that it derives from, is of -> module:function that reads it. A
# layer of Keras may be a module of PyTorch besides.
_READERS = {
    "keras": "gradscope.checkpoints.keras.live:read_keras_model",
    "tf_keras": "gradscope.checkpoints.keras.live:read_keras_model",
    "torch": "gradscope.checkpoints.torch.live:read_module",
    "flax": "gradscope.checkpoints.jax.flax_live:read_flax_model",
    "equinox": "gradscope.checkpoints.jax.equinox_live:read_equinox",
}


def read_live(function: str, model: Any, batch: Any) -> Live:
    """What ``from_torch`` or its like return; function : whose name messages begin with."""
    kinds = model.__mro__ if isinstance(model, type) else type(model).__mro__
    packages = {kind.__module__.split(".")[0] for kind in kinds}
    for package, reader in _READERS.items():
        if package in packages:
            live: Live = load(reader)(function, model, batch)
            return live
    raise wrong(function, model, "a model of PyTorch, Keras, Flax or Equinox")
