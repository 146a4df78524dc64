"""What the commands that change a network share: ``suggest`` and ``repair``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from gradscope.cli.options import check_cell_and_file, pick_settings, ready_to_measure
from gradscope.cli.output import Output
from gradscope.cli.streams import guarded_stdout, hushed, sayer

Advice = TypeVar("Advice")


def pick_given(given: dict[str, Any]) -> dict[str, Any]:
    """The options of ``Settings`` and the command's own that say anything, ready to be measured with."""
    settings = pick_settings(given) | {
        name: value for name, value in given.items() if value not in (None, ())
    }
    ready_to_measure(settings)
    check_cell_and_file(settings)
    return settings


def advised(call: Callable[..., Advice], settings: dict[str, Any], output: Output) -> Advice:
    """What the library's function returns; what it tries meanwhile goes to stderr."""
    with guarded_stdout(), hushed(output.quiet):
        return call(**settings, trying=sayer(output.quiet))
