"""``gradscope config``: what every option is set to, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from click.core import ParameterSource

from gradscope.cli.defaults import ANALYSES, origin, set_defaults, settable
from gradscope.cli.group import Command, LazyGroup, saying_where
from gradscope.cli.streams import write_result
from gradscope.config_file import OWN, SHARED, ConfigFile, find_config
from gradscope.errors import InputError, did_you_mean, shown
from gradscope.report.terminal import terminal_for
from gradscope.version import __version__

_FROM = {
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
}


@dataclass(frozen=True)
class Setting:
    """An option of a command: its value as the command line would be given it, and where that is from."""

    command: str
    option: str
    value: Any
    source: str
    where: str


def _commands(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Those whose names begin so, for the shell."""
    group = context.find_root().command
    names = group.list_commands(context) if isinstance(group, LazyGroup) else []
    return [name for name in names if name.startswith(incomplete)]


@click.command(cls=Command, short_help="Say what every option is set to, and where.")
@click.argument("command", required=False, shell_complete=_commands)
@click.option("--set", "only_set", is_flag=True, help="Only what is set, not what has its default.")
@click.option("--json", "as_json", is_flag=True, help="As JSON (gradscope schema config).")
def config(command: str | None, only_set: bool, as_json: bool) -> None:
    """Say what every option is set to where it is not given, and by what.

    \b
    Examples:
      gradscope config
      gradscope config analyze --set
      GRADSCOPE_ANALYZE_STEPS=50 gradscope config analyze --json

    An option is what the command line says; else the variable GRADSCOPE_<COMMAND>_<OPTION>, such as
    GRADSCOPE_ANALYZE_STEPS (several values with spaces between them); else what the settings file has in the
    table of the command, or at its top for every command with such an option; else its default. The file is
    the nearest gradscope.toml, or pyproject.toml with [tool.gradscope], of this folder or one above it in the
    same repository. Options are spelled as in Python, names of files are meant from the settings file:

    \b
      [tool.gradscope]             # in gradscope.toml no more than the names
      dtype = "float32"
      [tool.gradscope.analyze]
      steps = 500
      fail_on = ["vanishing", "exploding"]
    """
    context = click.get_current_context()
    group = context.find_root().command
    assert isinstance(group, LazyGroup)
    names = group.list_commands(context)
    if command is not None and command not in names:
        raise InputError(f"no command is called {shown(command)!r}{did_you_mean(command, names)}")
    found = find_config()
    settings = [
        one
        for name in ([command] if command else names)
        for one in _settings(group, context, name, found)
        if not only_set or one.source != "default"
    ]
    width = terminal_for("never", to_file=False).width
    write_result(_as_json(settings, found) if as_json else _as_text(settings, found, width), None)


def _settings(
    group: LazyGroup, above: click.Context, name: str, found: ConfigFile | None
) -> Iterator[Setting]:
    command = group.get_command(above, name)
    assert command is not None
    context = click.Context(command, parent=above.find_root(), info_name=name)
    set_defaults(context, found)
    for option, param in settable(command).items():
        value, source = param.consume_value(context, {})
        context.set_parameter_source(option, source)
        with saying_where(context):
            value = _plain(param, context, value)
        yield Setting(name, option, value, _FROM.get(source, "default"), origin(context, option, source))


def _plain(param: click.Parameter, context: click.Context, value: Any) -> Any:
    """As the command will have it, in what JSON knows; raises BadParameter where it cannot be."""
    if not isinstance(value, str | bool | int | float | list | tuple):
        return None  # it has no default of its own
    made = param.process_value(context, value)
    if isinstance(made, tuple | list):
        return [str(one) for one in made]
    return made if isinstance(made, bool | int | float | None) else str(made)


def _as_json(settings: list[Setting], found: ConfigFile | None) -> str:
    told = {
        "schema": "gradscope/config/1",
        "gradscope": __version__,
        "file": None if found is None else str(found.path),
        "settings": [asdict(one) for one in settings],
    }
    return json.dumps(told, allow_nan=False) + "\n"


def _as_text(settings: list[Setting], found: ConfigFile | None, width: int) -> str:
    """A line for every option, two where it does not fit; - where it has no default of its own."""
    none = f"none: no {OWN}, and no {SHARED} with [tool.gradscope]"
    lines = [f"Settings file: {shown(found.path) if found else none}"]
    wide, deep = (max((len(text) for text in column), default=0) for column in _columns(settings))
    command = ""
    for one, value in zip(settings, _columns(settings)[1], strict=True):
        if one.command != command:
            lines += ["", one.command]
        command = one.command
        where = one.where or one.source
        line = f"  {one.option:{wide}}  {value:{deep}}  {where}"
        lines += [line] if len(line) <= width else [f"  {one.option:{wide}}  {value}", f"    {where}"]
    if found and isinstance(analyses := found.table.get(ANALYSES), dict):
        lines += ["", f"Analyses of check: {', '.join(map(shown, analyses))}"]
    return "\n".join(lines) + "\n"


def _columns(settings: list[Setting]) -> tuple[list[str], list[str]]:
    values = [" ".join(one.value) if isinstance(one.value, list) else one.value for one in settings]
    words = {True: "true", False: "false", None: "-", "": "-"}
    return [one.option for one in settings], [
        shown(words[value] if isinstance(value, bool | str | None) and value in words else value)
        for value in values
    ]
