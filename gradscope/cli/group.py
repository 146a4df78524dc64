"""Commands that are imported when they are asked for, and whose help is delivered or an error."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import click

from gradscope.cli.streams import delivering
from gradscope.errors import ExitCode


@contextlib.contextmanager
def nearest_option(command: click.Command, ctx: click.Context) -> Iterator[None]:
    """Answer a misspelt option with those that it begins, else the nearest: click says --help for --cel."""
    try:
        yield
    except click.NoSuchOption as error:
        options = [flag for param in command.get_params(ctx) for flag in param.opts if flag.startswith("--")]
        given = error.option_name
        near = [flag for flag in options if flag.startswith(given)]
        near = near or difflib.get_close_matches(given, options, n=3, cutoff=0.6)
        hint = f": did you mean {' or '.join(sorted(near)[:3])}?" if near else ""
        raise click.UsageError(f"no such option {given}{hint}", ctx) from error


class Command(click.Command):
    """A command whose ``--help`` fails as a result would where stdout cannot be written."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, which prints the help from here."""
        with delivering("stdout"), nearest_option(self, ctx):
            return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, by sections (see SectionedOption)."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class SectionedOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class LazyGroup(click.Group):
    """Commands as ``{name: "module:command"}``; a misspelt one is answered with the nearest."""

    def __init__(self, *args: Any, commands_in: Mapping[str, str] = {}, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commands_in = commands_in

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, but nothing asked is answered with the help on stderr: it is no result."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            raise click.exceptions.Exit(ExitCode.USAGE)
        with delivering("stdout"), nearest_option(self, ctx):
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order they are declared."""
        return list(self._commands_in)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, None if there is no such."""
        if cmd_name not in self._commands_in:
            return None
        module, _, attribute = self._commands_in[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with did-you-mean."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self._commands_in, n=1)
            if near:
                raise click.UsageError(f"{error.message.rstrip('.')}: did you mean {near[0]}?", ctx) from None
            raise
