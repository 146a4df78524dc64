"""Names of cells with other activations than the usual: ``lstm-relu``, ``gru-tanh-hard_sigmoid=0.2``.

After the cell stands the activation of its block input, candidate or state, then that of its gates, then that
of an LSTM's output where it is not that of the block input, each with its parameters where it has any. What
would only repeat the usual is left out. This is the order of Keras' activation and recurrent_activation;
ONNX' f, g, h are the second, the first and the third.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from fractions import Fraction

from gradscope.errors import InputError

# Activation -> what its parameters are where they are not given, None where there is no usual value.
ACTIVATIONS: dict[str, tuple[float | None, ...]] = {
    "tanh": (),
    "relu": (),
    "sigmoid": (),
    "linear": (),
    "affine": (None, 0.0),
    "celu": (1.0,),
    "elu": (1.0,),
    "exponential": (),
    "gelu": (),
    "gelu_tanh": (),
    "hard_shrink": (0.5,),
    "hard_sigmoid": (None, 0.5),
    "hard_silu": (),
    "hard_tanh": (),
    "leaky_relu": (None,),
    "log_sigmoid": (),
    "mish": (),
    "relu6": (),
    "scaled_tanh": (None, 1.0),
    "selu": (),
    "silu": (),
    "soft_shrink": (0.5,),
    "softplus": (),
    "softsign": (),
    "sparse_plus": (),
    "sparse_sigmoid": (),
    "squareplus": (4.0,),
    "tanh_shrink": (),
    "thresholded_relu": (1.0,),
}
# Of these cells there is one for every choice of activations; the usual ones, in the order of the names.
USUAL: dict[str, tuple[str, ...]] = {
    "rnn": ("tanh",),
    "gru": ("tanh", "sigmoid"),
    "gru-reset-before": ("tanh", "sigmoid"),
    "lstm": ("tanh", "sigmoid", "tanh"),
    "lstm-1997": ("tanh", "sigmoid", "tanh"),
    "lstm-cifg": ("tanh", "sigmoid", "tanh"),
    "lstm-peephole": ("tanh", "sigmoid", "tanh"),
}
# Other names of what they are.
_ALIASES = {"rnn-linear": "linear"}
# What the state goes through in the cells that have a name of their own.
_OF_CELL = {"linear": "linear", "lstm-niaf": "mixed", "lstm-noaf": "mixed"}
_NUMBER = r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:e[+-]?\d{1,3})?(?:/\d{1,9})?"
_ONE = rf"[a-z][a-z0-9_]*(?:={_NUMBER}(?:,{_NUMBER})*)?"
_MEMBER = re.compile(
    rf"(?P<base>{'|'.join(sorted(USUAL, key=len, reverse=True))})(?P<rest>(?:-{_ONE}){{1,3}})"
)
_FRACTIONS, _LONG = 12, 8  # the largest denominator, of what would else be longer than these characters


def with_activations(base: str, activations: Sequence[str]) -> str:
    """The name of the cell ``base`` with these activations; raises InputError where one is unknown.

    activations : that of the state first, that of the gates, that of the output; those left out are the
        usual ones, but for the output's, which is that of the state.
    """
    usual, told = USUAL[base], list(_whole(base, activations))
    if len(told) == 3 and told[2] == told[0]:
        told.pop()
    while told and len(told) < 3 and told[-1] == usual[len(told) - 1]:
        told.pop()
    name = "-".join([base, *told])
    return _ALIASES.get(name, name)


def parts(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The cell and all its activations of a name that ``with_activations`` could have given; else None.

    Raises InputError where they have not the parameters that they must have, or are too many.
    """
    match = _MEMBER.fullmatch(name)
    told = re.findall(rf"-({_ONE})", match["rest"]) if match else []
    if not match or any(one.partition("=")[0] not in ACTIVATIONS for one in told):
        return None
    return match["base"], _whole(match["base"], told)


def _whole(base: str, activations: Sequence[str]) -> tuple[str, ...]:
    usual, told = USUAL[base], [spelled(one) for one in activations]
    if len(told) > len(usual):
        raise InputError(f"cell {base} has {len(usual)} activations, not {len(told)}: {', '.join(told)}")
    told += usual[len(told) : 2]
    return (*told, told[0]) if len(told) < len(usual) else tuple(told)


def canonical(name: str) -> str:
    """The one name of a cell whose activations may be spelled in several ways; of others as it is."""
    found = parts(name)
    return with_activations(*found) if found else name


def base_of(name: str) -> str:
    """The cell that a name is of, with whatever activations, or epsilon."""
    if name.startswith("lstm-layernorm"):
        return name.partition("=")[0]
    found = parts(next((full for full, short in _ALIASES.items() if short == name), name))
    return found[0] if found else name


def activation_of(name: str) -> str:
    """What the state of a built-in cell goes through: tanh, but where its name says otherwise."""
    found = parts(name)
    return found[1][0] if found else _OF_CELL.get(name, "tanh")


def spelled(text: str) -> str:
    """An activation as names have it: ``elu``, ``elu=0.5``, ``hard_sigmoid=1/6``."""
    name, parameters = name_and_numbers(text)
    usual, shown = ACTIVATIONS[name], list(parameters)
    while shown and shown[-1] == usual[len(shown) - 1]:
        shown.pop()
    return f"{name}={','.join(map(_written, shown))}" if shown else name


def name_and_numbers(text: str) -> tuple[str, tuple[float, ...]]:
    """The name and the parameters of an activation; raises InputError where there is none such."""
    name, given, numbers = text.partition("=")
    if name not in ACTIVATIONS:
        near = difflib.get_close_matches(name, ACTIVATIONS, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(ACTIVATIONS)}"
        raise InputError(f"unknown activation {name!r:.80}: {hint}")
    usual = ACTIVATIONS[name]
    values: list[float | None] = [_number(number) for number in numbers.split(",")] if given else []
    if len(values) > len(usual):
        raise InputError(f"activation {text!r:.80} has {len(values)} parameters, expected {len(usual)}")
    values += usual[len(values) :]
    if None in values:
        raise InputError(f"activation {text!r:.80} lacks a parameter: {_example(name)}")
    return name, tuple(value for value in values if value is not None)


def _example(name: str) -> str:
    """How to give the parameters of an activation that is not the same everywhere."""
    return {
        "hard_sigmoid": "hard_sigmoid=1/5 is clip(x / 5 + 1 / 2, 0, 1) of Keras 2 and ONNX, hard_sigmoid=1/6 "
        "relu6(x + 3) / 6 of Keras 3 and PyTorch",
        "leaky_relu": "its slope below 0, as in leaky_relu=0.2 (Keras 3) or leaky_relu=0.01 (PyTorch, ONNX)",
        "affine": "affine=A,B is A x + B",
        "scaled_tanh": "scaled_tanh=A,B is A tanh(B x)",
    }[name]


def _number(text: str) -> float:
    over, _, under = text.partition("/")
    value = float(over) / (float(under or 1) or math.nan)
    if not math.isfinite(value):
        raise InputError(f"parameter {text!r:.80} of an activation is not a finite number")
    return value


def _written(value: float) -> str:
    """A number as short as it can be without being another: 0.2, 1/6."""
    plain = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    near = Fraction(value).limit_denominator(_FRACTIONS)
    return str(near) if len(plain) > _LONG and float(near) == value else plain
