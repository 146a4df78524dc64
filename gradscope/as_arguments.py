"""Fields of a dataclass as the arguments of a function: the options, for Python.

Type checkers, editors and ``help`` see every one of them.
"""

from __future__ import annotations

import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Any, ParamSpec, TypeVar, get_args

from gradscope.option import option_of

P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")


def takes(settings: Callable[P, S]) -> Callable[[Callable[[S], R]], Callable[P, R]]:
    """Give a function of a dataclass the dataclass's fields as its arguments, in signature and docstring."""
    signature = inspect.signature(settings)

    def decorate(function: Callable[[S], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def taking(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:  # would else be told of the dataclass
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(settings(*args, **kwargs))

        own = inspect.signature(function)
        taking.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=own.return_annotation
        )
        taking.__annotations__ = {name: given.annotation for name, given in signature.parameters.items()}
        taking.__annotations__["return"] = own.return_annotation
        taking.__doc__ = _documented(function.__doc__ or "", settings)
        return taking

    return decorate


def _documented(text: str, settings: Any) -> str:
    """A docstring with its parameters after its first paragraph, in the form of NumPy's."""
    summary, _, rest = inspect.cleandoc(text).partition("\n\n")
    names = vars(sys.modules[settings.__module__])
    described = (_parameter(parameter, names) for parameter in fields(settings))
    parameters = "\n".join(["Parameters", "----------", *described])
    return "\n\n".join(part for part in (summary, parameters, rest) if part)


def _parameter(described: Field[Any], names: Mapping[str, Any]) -> str:
    """A field as NumPy's docstrings have it; names : what the module of its dataclass calls its types."""
    said, default = option_of(described), described.default
    kind = str(described.type).removesuffix(" | None")
    if words := said.choices or get_args(names.get(kind)):
        kind = "{" + ", ".join(map(repr, words)) + "}"
    kind += ", optional" if default in (None, ()) else f", default {default!r}"
    return f"{described.name} : {kind}\n{_indented(said.doc or said.help)}"


@functools.cache  # several functions take the same options
def _indented(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, 100), "    ")
