"""Commands that are imported when they are asked for, and whose help is delivered or an error."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from gradscope.cli.defaults import origin, set_defaults, settable
from gradscope.cli.elsewhere import why_not
from gradscope.cli.streams import delivering
from gradscope.errors import ExitCode, did_you_mean

# Where a context keeps all that was given on the command line.
ARGUMENTS = "gradscope.arguments"
# Columns of the help, at least; from which on options and their help stand side by side; how far it is moved
# in where it stands below.
_NARROWEST, _BESIDE, _BELOW = 30, 60, 10
# Examples that the short help shows.
_EXAMPLES = 5


@contextlib.contextmanager
def nearest_option(command: click.Command, ctx: click.Context) -> Iterator[None]:
    """Answer an option of other commands with why it is none here, a misspelt one with the nearest.

    The nearest are those that it begins: click says --help for --cel.
    """
    try:
        yield
    except click.NoSuchOption as error:
        if elsewhere := why_not(command, ctx, error.option_name):
            raise click.UsageError(f"no such option {error.option_name}{elsewhere}", ctx) from error
        options = [flag for param in command.get_params(ctx) for flag in param.opts if flag.startswith("--")]
        hint = did_you_mean(error.option_name, options, most=3)
        raise click.UsageError(f"no such option {error.option_name}{hint}", ctx) from error
    except click.UsageError as error:
        error.ctx = error.ctx or ctx  # click's parser does not say of which command an option lacks its value
        raise


@contextlib.contextmanager
def saying_where(ctx: click.Context) -> Iterator[None]:
    """Say of a wrong value that was not given on the command line where it stands."""
    try:
        yield
    except click.BadParameter as error:
        name = error.param.name if error.param else None
        if name and (where := origin(ctx, name, ctx.get_parameter_source(name))):
            message = f"{error.message.rstrip('.')} ({where})"
            raise click.BadParameter(message, error.ctx, error.param, error.param_hint) from error
        raise


class _Formatter(click.HelpFormatter):
    """As wide as the terminal also where that is narrow: click writes 50 columns and cuts words."""

    def __init__(self, width: int | None = None, max_width: int | None = None) -> None:
        columns = shutil.get_terminal_size().columns if width is None else width
        super().__init__(width=max(min(columns, max_width or columns) - 2, _NARROWEST))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """What is meant stands beside the name, or below it where there is little room."""
        super().write_dl(rows, col_max if self.width >= _BESIDE else _BELOW, col_spacing)


class _Context(click.Context):
    formatter_class = _Formatter


class Command(click.Command):
    """A command whose ``--help`` fails as a result would where stdout cannot be written.

    Options that are not given are looked for in the environment and in the settings file (cli/defaults.py).
    most_used : of many options those that ``-h`` shows, by their flags; ``--help`` has all, by section.
    lacking : {option of other commands: why it is none here, said after "it"}.
    """

    context_class = _Context

    def __init__(
        self, *args: Any, most_used: Sequence[str] = (), lacking: Mapping[str, str] = {}, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._most_used, self._brief = tuple(most_used), None
        self.lacking = lacking
        if most_used:
            self.context_settings["help_option_names"] = ["--help"]
            self._brief = click.Option(
                ["-h"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                allow_from_autoenv=False,
                callback=_show_brief,
                help="Show the options most used, and exit.",
            )

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """As click's; ``-h`` stands before ``--help`` where it is not the same."""
        params = super().get_params(ctx)
        return params if self._brief is None else [*params[:-1], self._brief, params[-1]]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, which prints the help from here."""
        if not (ctx.resilient_parsing or {*args} & {"-h", "--help"}):
            set_defaults(ctx)
        with delivering("stdout"), nearest_option(self, ctx), saying_where(ctx):
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

    def brief_help(self, ctx: click.Context) -> str:
        """What it does, some examples, and the options that most use."""
        formatter = ctx.make_formatter()
        self.format_usage(ctx, formatter)
        what, _, rest = inspect.cleandoc(self.help or "").replace("\b\n", "").partition("\n\n")
        with formatter.indentation():
            formatter.write_paragraph()
            formatter.write_text(what)
            formatter.write_paragraph()
            for line in rest.partition("\n\n")[0].splitlines()[: 1 + _EXAMPLES]:
                formatter.write(f"  {line}\n")
        records = {flag: param.get_help_record(ctx) for param in self.get_params(ctx) for flag in param.opts}
        with formatter.section("Options"):
            formatter.write_dl([record for flag in self._most_used if (record := records[flag])])
        formatter.write_paragraph()
        formatter.write_text(
            f"{ctx.command_path} --help shows all {len(settable(self))} options, by section."
        )
        return formatter.getvalue().rstrip("\n")


def _show_brief(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        assert isinstance(ctx.command, Command)
        click.echo(ctx.command.brief_help(ctx), color=ctx.color)
        ctx.exit()


class SectionedOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class LazyGroup(click.Group):
    """Commands as ``{name: "module:command"}``; a misspelt one is answered with the nearest."""

    context_class = _Context

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
            if hint := did_you_mean(args[0], self._commands_in):
                raise click.UsageError(f"{error.message.rstrip('.')}{hint}", ctx) from None
            raise
