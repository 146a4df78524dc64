"""Options that are not given: the environment's, then those of the settings file, then their own defaults."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click
from click.core import ParameterSource

from gradscope.cli.elsewhere import why_not
from gradscope.config_file import ConfigFile, find_config
from gradscope.errors import InputError, did_you_mean, flag, quoted, shown

# What ``check`` reads of the file: the table of its analyses, and the file that changes are counted from.
ANALYSES = "analyses"
# What variables begin with; those that are no options.
_OURS = "GRADSCOPE_"
OTHERS = (
    *("GRADSCOPE_CACHE_DIR", "GRADSCOPE_TRACEBACK"),
    *("GRADSCOPE_SHARD_INDEX", "GRADSCOPE_SHARDS"),
)
_INPUTS = ("normal", "zeros")


def set_defaults(ctx: click.Context, found: ConfigFile | None = None) -> None:
    """Take up what the settings file has for the command of ``ctx``; raises InputError for unknown names.

    found : the file, where it has been read.
    """
    _check_environment(ctx)
    if found := found or find_config():
        ctx.default_map = _of_command(found, ctx)
        ctx.obj = found


def settable(command: click.Command) -> dict[str, click.Parameter]:
    """The parameters of a command that may be set elsewhere, by name; of a shorthand what it is short for."""
    named: dict[str, click.Parameter] = {}
    for param in command.params:
        if param.name and param.expose_value:
            named.setdefault(param.name, param)
    return named


def origin(ctx: click.Context, name: str, source: ParameterSource | None) -> str:
    """Where a parameter's value came from, in words; "" for the command line or its own default."""
    if source == ParameterSource.ENVIRONMENT:
        return f"{ctx.auto_envvar_prefix}_{name.upper()}"
    if source == ParameterSource.DEFAULT_MAP and isinstance(ctx.obj, ConfigFile):
        return f"{name} in {shown(ctx.obj.path)}"
    return ""


def _check_environment(ctx: click.Context) -> None:
    prefix = f"{ctx.auto_envvar_prefix}_"
    known = [name.upper() for name in settable(ctx.command)]
    for variable in os.environ:
        name = variable.removeprefix(prefix)
        if name != variable and name not in known:
            hint = why_not(ctx.command, ctx, flag(name.lower())) or did_you_mean(name, known).replace(
                "you mean ", f"you mean {prefix}"
            )
            raise InputError(f"{shown(variable)} is set, but {ctx.command_path} has no such option{hint}")


def unknown_variables(group: click.Group, ctx: click.Context) -> Iterator[str]:
    """What to say of variables that look as if they were ours: those of commands are errors already."""
    names = group.list_commands(ctx)
    ours = (*OTHERS, *(f"{_OURS}{name.upper()}_" for name in names))
    unknown = [one for one in os.environ if one.startswith(_OURS) and not one.startswith(ours)]
    if not unknown:
        return  # before any command is imported
    known = [one.removeprefix(_OURS) for one in OTHERS]
    known += [f"{name}_{one}".upper() for name in names for one in settable(_command(group, ctx, name))]
    for variable in unknown:
        hint = did_you_mean(variable.removeprefix(_OURS), known).replace("you mean ", f"you mean {_OURS}")
        yield f"{shown(variable)} is set, but stands for nothing{hint}"


def _of_command(found: ConfigFile, ctx: click.Context) -> dict[str, Any]:
    """{parameter: value} of the file: its own table's, else those that stand there for every command."""
    name, params = str(ctx.info_name), settable(ctx.command)
    own = found.table.get(name, {})
    if not isinstance(own, dict):
        raise InputError(
            f"{shown(found.path)}: {name} is {quoted(own)}, expected a table of {ctx.command_path}'s options"
        )
    for key in own:
        if key not in params:
            here = f"{shown(found.path)}: {name}.{shown(key)} is no option of {ctx.command_path}"
            near = f"{did_you_mean(key.replace('-', '_'), params)} (as Python spells it)"
            raise InputError(f"{here}{why_not(ctx.command, ctx, flag(key)) or near}")
    shared = {key: value for key, value in _shared(found, ctx) if key in params}
    return {key: _value(found, params[key], value) for key, value in (shared | own).items()}


def _shared(found: ConfigFile, ctx: click.Context) -> Iterator[tuple[str, Any]]:
    """What stands at the top of the file: for every command that has such an option."""
    group = ctx.find_root().command
    commands = group.list_commands(ctx) if isinstance(group, click.Group) else []
    here = settable(ctx.command)
    for key, value in found.table.items():
        if key == ANALYSES or key in commands:
            continue
        if key not in here and isinstance(group, click.Group):
            others = {name for each in commands for name in settable(_command(group, ctx, each))}
            if key not in others:
                hint = did_you_mean(key.replace("-", "_"), [ANALYSES, *commands, *sorted(others)])
                raise InputError(
                    f"{shown(found.path)}: {shown(key)} is neither a command, nor an option of any, nor "
                    f"{ANALYSES}{hint}"
                )
        yield key, value


def _command(group: click.Group, ctx: click.Context, name: str) -> click.Command:
    command = group.get_command(ctx, name)
    assert command is not None
    return command


def _value(found: ConfigFile, param: click.Parameter, value: Any) -> Any:
    """A value of the file as click takes it from the command line: text, which it parses and checks."""
    what = f"{shown(found.path)}: {param.name}"
    flag = isinstance(param, click.Option) and param.is_flag
    several = isinstance(param, click.Option) and param.multiple
    if isinstance(value, bool) != flag or isinstance(value, Mapping):
        raise InputError(
            f"{what} is {quoted(value)}, expected {'true or false' if flag else 'text, or a number'}"
        )
    if isinstance(value, list) and not several:
        raise InputError(f"{what} is {quoted(value)}, expected one value")
    if flag:
        return value
    each = [_text(found, param, str(one)) for one in (value if isinstance(value, list) else [value])]
    return each if several else each[0]


def _text(found: ConfigFile, param: click.Parameter, text: str) -> str:
    """Names of files are meant from where the settings file is."""
    kind = param.metavar or ("FILE" if isinstance(param.type, click.Path) else "")
    if "FILE" not in kind or text == "-" or text in _INPUTS or (kind != "FILE" and "=" in text):
        return text
    return str(found.beside(text))
