"""An option that a command lacks and another has: why it does, or which has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

import click

from gradscope.errors import flag
from gradscope.option import option_of
from gradscope.settings import Settings


def why_not(command: click.Command, ctx: click.Context, option: str) -> str:
    """``: it ...`` of an option that ``command`` lacks; "" where it has it, or no other does."""
    if option in _flags(command):
        return ""
    if predicate := getattr(command, "lacking", {}).get(option):
        return f": it {predicate}"
    root = ctx.find_root()
    group = root.command
    names = group.list_commands(ctx) if isinstance(group, click.Group) else []
    having = [name for name in names if option in _flags(group.get_command(ctx, name))]  # type: ignore[attr-defined]
    return f": it is an option of {root.info_name} {_either(having)}" if having else ""


def as_flags(reasons: Mapping[str, str]) -> dict[str, str]:
    """{what the shell calls it: why it is lacking} of {option of an analysis: why}."""
    keys = {one.name: option_of(one).keys for one in fields(Settings)}
    return {flag(name): why for one, why in reasons.items() for name in keys.get(one) or [one]}


def _flags(command: click.Command | None) -> Iterable[str]:
    return [
        opt for param in (command.params if command else ()) for opt in param.opts if opt.startswith("--")
    ]


def _either(names: list[str]) -> str:
    """``analyze``, ``analyze and check``, ``analyze, check and track``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
