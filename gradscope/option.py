"""What a field of a dataclass says of itself: how the shell asks for it, and what its words stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Option:
    """How the field of a dataclass is asked for in the shell, and what is said of it.

    section : the heading it stands under in the help; without one the shell has no such option.
    help : for the shell; doc : for Python, where that is another. "" is the same.
    choices : all that it may be, besides its default. Where it has a metavar the shell does not list them.
    parse : the value that a text stands for; ValueError says what is wrong with it.
    repeatable : the shell collects it; positional : it is an argument there; reads : it may be a file.
    flags : what the shell calls it, where that is not made of the field's name; of a bool that is True by
        default there is a --no- too.
    shorthands : {flag: (the value it stands for, help)}.
    keys : of a field that is a mapping, {option: (its key, help)}: an option for each of these keys.
    """

    section: str = ""
    help: str = ""
    doc: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] = str
    repeatable: bool = False
    positional: bool = False
    reads: bool = False
    flags: tuple[str, ...] = ()
    shorthands: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def option(default: Any, section: str = "", help: str = "", **more: Any) -> Any:  # noqa: A002
    """A dataclass field with a default, and the Option that describes it."""
    return field(default=default, metadata={"option": Option(section=section, help=help, **more)})


def option_of(described: Field[Any]) -> Option:
    """The Option that describes a field."""
    found: Option = described.metadata["option"]
    return found


def is_default(value: Any, default: Any) -> bool:
    """Whether a setting says no more than its default; an array, which answers == by entry, says more."""
    plain = (type(None), str, int, float, tuple)
    return value is default or (
        isinstance(value, plain) and type(value) is type(default) and value == default
    )


def same_as(dataclass: type[Any], name: str) -> Any:
    """A field with the default and the Option of another dataclass's field."""
    (other,) = (other for other in fields(dataclass) if other.name == name)
    return field(default=other.default, metadata=other.metadata)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size_in_bytes(text: str) -> int:
    """``500M`` or ``2G`` as a number of bytes."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)i?B?", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is no size, expected bytes or such as 500M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]


def is_number(text: str) -> bool:
    """Whether a word is a number, as Python writes it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def number_or_word(text: str) -> int | str:
    """A whole number, or what else it says."""
    return int(text) if text.isdecimal() else text
