"""What a config of Keras says that a model does, in training or between batches, and an analysis not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def besides(config: Mapping[str, Any], cell: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a recurrent layer's own config and its cell's, a sentence each."""
    said = []
    if rate := _rate(cell, "dropout"):
        said.append(f"dropout of {rate:g} on its inputs in training: other inputs, no factor of the gain")
    if rate := _rate(cell, "recurrent_dropout"):
        said.append(_recurrent(rate))
    if config.get("stateful") is True:
        said.append("stateful: in the model a batch starts from the states in which the one before ended")
    if config.get("unroll") is True:
        said.append("unroll: the steps are written out one by one, which changes no number")
    return tuple(said)


def clipping(training: Any) -> tuple[str, ...]:
    """Of the optimizer in what a model was compiled with."""
    optimizer = _of(_of(training, "optimizer", "optimizer_config"), "config")
    return tuple(
        f"{name} of {value:g} in training: it cuts the weights' gradient after it has flowed back"
        for name in _CLIPS
        if isinstance(value := optimizer.get(name), int | float) and not isinstance(value, bool)
    )


def _recurrent(rate: float) -> str:
    kept = f"{1 / (1 - rate):g}" if rate < 1 else "inf"
    return (
        f"recurrent_dropout of {rate:g} in training: each unit enters the paths R* times {kept} or, with "
        f"probability {rate:g}, times 0, the same at every step of a sequence: per step a factor of at most "
        f"{kept}, 1 on average (--recurrent-dropout {rate:g} measures it)"
    )


def _rate(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name)
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else 0.0


def _of(node: Any, *names: str) -> Mapping[str, Any]:
    found = (node.get(name) for name in names) if isinstance(node, dict) else ()
    return next((value for value in found if isinstance(value, dict)), {})
