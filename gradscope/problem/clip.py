"""Gradient clipping as it was asked for: which law, and its threshold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from gradscope.errors import InputError, as_option, listed, quoted
from gradscope.problem.checks import real

Over = Literal["all", "variable", "entry"]


@dataclass(frozen=True)
class ClipLaw:
    """How a library clips.

    over : what is held against the threshold: the norm over all parameters together, that of every variable,
        or every entry. epsilon : what is added to the norm before the threshold is divided by it.
    words : where it is from.
    """

    over: Over
    words: str
    epsilon: float = 0.0


# Read in torch 2.12 (nn/utils/clip_grad.py), Keras 3.15 (optimizers/base_optimizer.py), optax 0.2.8
# (transforms/_clipping.py).
CLIP_LAWS = {
    "norm": ClipLaw("all", "torch.nn.utils.clip_grad_norm_", 1e-6),
    "value": ClipLaw("entry", "torch.nn.utils.clip_grad_value_"),
    "keras-clipnorm": ClipLaw("variable", "clipnorm of a Keras optimizer"),
    "keras-global_clipnorm": ClipLaw("all", "global_clipnorm of a Keras optimizer"),
    "keras-clipvalue": ClipLaw("entry", "clipvalue of a Keras optimizer"),
    "optax-clip_by_global_norm": ClipLaw("all", "optax.clip_by_global_norm"),
    "optax-clip": ClipLaw("entry", "optax.clip"),
}


@dataclass(frozen=True)
class Clip:
    """Clipping by the law of this name at a threshold, which is positive."""

    law: str
    threshold: float

    @property
    def how(self) -> ClipLaw:
        """The law."""
        return CLIP_LAWS[self.law]


def clip_of(given: Any) -> Clip | None:
    """What was asked for, as ``5``, ``norm:5`` or ``keras-clipnorm:1``; None where nothing was."""
    if given is None:
        return None
    law, colon, number = given.rpartition(":") if isinstance(given, str) else ("", "", given)
    law = law if colon else "norm"
    if law not in CLIP_LAWS:
        raise InputError(
            f"{as_option('clip')} {quoted(given)}: no clipping is called {quoted(law)}, expected a threshold "
            f"alone or LAW:THRESHOLD with one of {listed(list(CLIP_LAWS))}"
        )
    if isinstance(number, str):
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", number, re.IGNORECASE):
            raise InputError(
                f"{as_option('clip')} is {quoted(given)}, expected a threshold such as 5, or LAW:THRESHOLD "
                "such as keras-clipnorm:1"
            )
        number = float(number)
    threshold = real("clip", number)
    if threshold <= 0:
        raise InputError(f"{as_option('clip')} is {quoted(given)}, expected a threshold above 0")
    return Clip(law, threshold)
