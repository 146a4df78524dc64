"""Modules of PyTorch: the names are those of its state dict, what is not in that the module itself says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from gradscope.checkpoints import torch_names
from gradscope.checkpoints.found import SIMPLE, Found
from gradscope.checkpoints.live import Live, kept, source, wrong
from gradscope.custom_types import Array


def from_torch(module: Any) -> Live:
    """The LSTM, GRU and RNN layers and cells anywhere in a ``torch.nn.Module``, for ``gradscope.analyze``.

    module : as it is now, on any device and in any precision; parametrisations (orthogonal, spectral norm)
        are applied. The tanh or relu of an RNN is read from it.
    Raises InputError where it is no module, or holds no such layer.
    """
    if isinstance(module, type) or not all(hasattr(module, n) for n in ("state_dict", "named_modules")):
        raise wrong("from_torch", module, "a torch.nn.Module")
    modules = dict(module.named_modules())
    tensors = {name: kept(name, partial(_values, tensor)) for name, tensor in _weights(module, modules)}
    layers = tuple(_told(found, modules) for found in torch_names.layers(tensors))
    return Live(source("from_torch", module), layers, tensors)


def _weights(module: Any, modules: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors of the state dict, what parametrisations make of them in place of their parts."""
    for name, value in module.state_dict().items():
        if hasattr(value, "detach") and "parametrizations" not in name.split("."):
            yield name, value
    for prefix, part in modules.items():
        for name, parametrization in getattr(part, "parametrizations", {}).items():
            training = parametrization.training
            parametrization.eval()  # to look must not be a step of spectral norm's power iteration
            try:
                yield f"{prefix}.{name}".lstrip("."), getattr(part, name)
            finally:
                parametrization.train(training)


def _values(tensor: Any) -> Array:
    """On the CPU, in the same precision: NumPy's own conversion knows no bfloat16."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return np.asarray(tensor.float()).astype(ml_dtypes.bfloat16)
    return np.asarray(tensor)


def _told(found: Found, modules: Mapping[str, Any]) -> Found:
    """A layer with what its module says: the nonlinearity, and whether it is one of torch's at all."""
    module = modules.get(found.keys[0].rpartition(".")[0])
    if found.problem:
        return found
    if not any(kind.__module__ == "torch.nn.modules.rnn" for kind in type(module).__mro__):
        cells = " or ".join(f"cell={cell!r}" for cell in found.cells)
        return replace(
            found, question=f"is a {type(module).__name__}, not torch's: if it computes the same, add {cells}"
        )
    if nonlinearity := getattr(module, "nonlinearity", None):
        return replace(found, cells=(SIMPLE[nonlinearity],), question="")
    return found
