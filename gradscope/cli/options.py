"""Options of the shell from the fields of dataclasses, and back; what commands that measure begin with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from gradscope.cells import CELLS, check_known
from gradscope.cli.group import SectionedOption
from gradscope.errors import flag
from gradscope.option import Option, option, option_of
from gradscope.settings import Activation, Init, Settings

# Words that the shell completes, besides choices.
_WORDS = {
    "activation": get_args(Activation),
    "cell": tuple(CELLS),
    "init": get_args(Init),
    "inputs": ("normal", "zeros"),
    "top": ("all",),
}

Command = TypeVar("Command", bound=Callable[..., Any])
Asked = TypeVar("Asked")


@dataclass(frozen=True, kw_only=True)
class Process:
    """Which process of a cluster this one is, and whether it keeps what it has compiled."""

    coordinator: str | None = option(
        None, "Machine", "Its process 0, if JAX cannot find it.", metavar="HOST:PORT"
    )
    num_processes: int | None = option(None, "Machine", "How many processes it has.", metavar="N", parse=int)
    process_id: int | None = option(
        None, "Machine", "Which of them this one is, 0 to N - 1.", metavar="I", parse=int
    )
    cluster_timeout: int = option(
        300, "Machine", "Seconds that the processes wait for one another.", metavar="S", parse=int
    )
    compile_cache: bool = option(
        True, "Machine", "Keep compiled programs between runs (in GRADSCOPE_CACHE_DIR)."
    )

    @property
    def place(self) -> dict[str, Any]:
        """Where it is in the cluster, as far as that is given."""
        names = ("coordinator", "num_processes", "process_id")
        return {name: getattr(self, name) for name in names}


# -- from dataclasses to click and back --------------------------------------------------------------


def options(
    asked: type[Any], names: Sequence[str] | None = None, section: str | None = None
) -> Callable[[Command], Command]:
    """Decorate a click command with the options of a dataclass's fields, or of those with these names.

    section : the heading that they have in the help, else each its own; under one heading stand options of
        all dataclasses.
    """
    chosen = [one for one in fields(asked) if names is None or one.name in names]
    parameters = [parameter for one in chosen for parameter in _parameters(one, section)]

    def decorate(command: Command) -> Command:
        for parameter in reversed(parameters):  # the first of them outermost
            command = parameter(command)
        return command

    return decorate


def pick(asked: type[Asked], given: dict[str, Any]) -> Asked:
    """Remove the options of a dataclass from what was ``given`` and return them as one of it."""
    names = [one.name for one in fields(asked) if one.name in given]  # type: ignore[arg-type]
    return asked(**{name: given.pop(name) for name in names})


def pick_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of ``Settings``, and return as its arguments those that say anything."""
    settings = {}
    for one in fields(Settings):
        keys = option_of(one).keys
        if keys:
            values = {key: given.pop(name) for name, (key, _) in keys.items() if name in given}
            settings[one.name] = {key: value for key, value in values.items() if value is not None}
        elif one.name in given:
            settings[one.name] = given.pop(one.name)
    return {name: value for name, value in settings.items() if value not in (None, (), {})}


def pick_said(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the settings of a command those that somebody said, and those that its file has for all commands."""
    context = click.get_current_context()
    source = {name: context.get_parameter_source(name) for name in given}
    said = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.PROMPT)
    picked = [
        pick_settings({name: value for name, value in given.items() if source[name] in kinds})
        for kinds in (said, (ParameterSource.DEFAULT_MAP,))
    ]
    return picked[0], picked[1]


def _parameters(described: Field[Any], section: str | None) -> list[Callable[[Command], Command]]:
    """The click decorators of one field."""
    said, name = option_of(described), described.name
    if said.positional:
        return [click.argument(name, required=False, type=click.Path(path_type=Path))]
    if not said.section:
        return []
    heading = {"section": section or said.section}
    attributes = heading | _attributes(name, said, described.default)
    if said.keys:
        return [_option(key, attributes | {"help": text}) for key, (_, text) in said.keys.items()]
    flags = said.flags or ((f"{flag(name)}/{flag(f'no_{name}')}",) if described.default is True else ())
    shorthands = [
        _option(name, heading | {"flag_value": value, "help": text, "allow_from_autoenv": False}, shorthand)
        for shorthand, (value, text) in said.shorthands.items()
    ]
    return [_option(name, attributes, *flags), *shorthands]


def _option(name: str, attributes: dict[str, Any], *flags: str) -> Callable[[Command], Command]:
    return click.option(*(flags or [flag(name)]), name, cls=SectionedOption, **attributes)


def _attributes(name: str, said: Option, default: Any) -> dict[str, Any]:
    """What click is told of an option."""
    if isinstance(default, bool):
        return {"is_flag": True, "default": default, "help": said.help}
    attributes: dict[str, Any] = {"metavar": said.metavar, "multiple": said.repeatable, "help": said.help}
    if default not in (None, ()):
        attributes |= {"default": default, "show_default": True}
    if not isinstance(said.parse, type):
        attributes["callback"] = _parsing(said.parse)
    if words := said.choices or _WORDS.get(name, ()):
        attributes["shell_complete"] = _completing(words, files="FILE" in (said.metavar or ""))
    if said.metavar == "FILE":  # the shell completes its name; whether it is there others ask
        return attributes | {"type": click.Path(allow_dash=True, readable=False)}
    if said.choices and not said.metavar:
        return attributes | {"type": click.Choice(said.choices)}
    return attributes | {"type": said.parse if isinstance(said.parse, type) else str}


def _completing(
    words: Sequence[str], *, files: bool
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """What completes a value in the shell: these words, and names of files where it may be one."""

    def complete(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
        found = [CompletionItem(word) for word in words if word.startswith(begun)]
        return [*found, CompletionItem(begun, type="file")] if files else found

    return complete


def _parsing(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A function of a text as click calls it; its ValueError is the message."""

    def parsed(_: click.Context, __: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return parsed


# -- what commands share -----------------------------------------------------------------------------


def input_files(settings: Mapping[str, Any]) -> list[Path]:
    """The files that are to be read."""
    from gradscope.formats.numpy_files import split_key

    given = [settings.get(field.name) for field in fields(Settings) if option_of(field).reads]
    flat = [one for value in given for one in (value if isinstance(value, tuple) else (value,))]
    named = [one for one in flat if one not in (None, "normal", "zeros")]
    return [one if isinstance(one, Path) else Path(split_key(one)[0]) for one in named]


def ready_to_measure(*settings: Mapping[str, Any]) -> None:
    """What has to be so before JAX is imported, for analyses with these settings."""
    find_modules_here()
    if all(one.get("platform") == "cpu" for one in settings):
        os.environ["JAX_PLATFORMS"] = "cpu"  # or JAX takes hold of the GPU all the same


def check_cell_and_file(settings: Mapping[str, Any]) -> None:
    """Raise InputError for the slips that need no JAX to be seen: the name of no cell, or of no file."""
    cell, checkpoint = settings.get("cell"), settings.get("checkpoint")
    if isinstance(cell, str):
        check_known(cell)
    if checkpoint is not None and not Path(checkpoint).exists():
        from gradscope.formats.reading import TENSOR_FILES, kind_of, open_tensors

        if kind_of(checkpoint) in TENSOR_FILES:
            with open_tensors(checkpoint):
                pass


def find_modules_here() -> None:
    """``--cell package.module:factory`` looks in the current folder too, as ``python -m`` does."""
    try:
        here = str(Path.cwd())
    except OSError:  # it has been deleted
        return
    if here not in sys.path:
        sys.path.append(here)
