"""The options of the shell: those of ``Settings``, and what comes out, where and how."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field)

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from gradscope.cells import CELLS, check_known
from gradscope.cli.group import SectionedOption
from gradscope.errors import ExitCode, InputError, flag, listed, nearest_or_all, quoted, shown
from gradscope.option import Option, option, option_of
from gradscope.report.views import FORMATS, Look, Told, check_format, render
from gradscope.settings import Activation, Init, Level, Settings

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis
    from gradscope.report.verdict import Matched

# Opened by its name, a stdout that is a file would lose what others have written to it.
_STDOUT = (Path("-"), Path("/dev/stdout"))

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


# -- options that only the shell has -----------------------------------------------------------------


def as_path(text: str) -> Path:
    """A file of that name."""
    return Path(text)


def file_unless_stdout(text: str) -> Path | None:
    """A file of that name; None of what is stdout."""
    return None if Path(text) in _STDOUT else Path(text)


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


@dataclass(frozen=True, kw_only=True)
class Output:
    """What comes out of a command, where and how."""

    fail_on: tuple[str, ...] = option(
        (), "Verdict", "Exit 1 on this verdict (repeatable).", choices=get_args(Level), repeatable=True
    )
    format: str = option(
        "table",
        "Output",
        "A table or a page (html) for people; json, jsonl or csv for programs; markdown; github annotations, "
        "junit for CI; bmf (Bencher), benchmark (github-action-benchmark) for charts.",
        choices=tuple(FORMATS),
        shorthands={"--json": ("json", "The same as --format json.")},
    )
    output: Path | None = option(
        None,
        "Output",
        "Write to FILE; - is stdout.",
        flags=("-o", "--output"),
        metavar="FILE",
        parse=file_unless_stdout,
    )
    also: tuple[str, ...] = option(
        (),
        "Output",
        "Write a further format to FILE, such as junit=report.xml (repeatable).",
        metavar="FORMAT=FILE",
        repeatable=True,
    )
    write_baseline: Path | None = option(
        None,
        "Output",
        "Write what was measured, for compare and for check --baseline.",
        metavar="FILE",
        parse=as_path,
    )
    color: str = option(
        "auto",
        "Output",
        "Colour in the table; NO_COLOR and FORCE_COLOR are heeded.",
        choices=("auto", "always", "never"),
    )
    lags: str = option(
        "auto",
        "Output",
        "Lags in the JSON profile: about a thousand at most, or every one.",
        choices=("auto", "all"),
    )
    quiet: bool = option(
        False,
        "Output",
        "The verdict alone, computed as with --only verdict; on stderr only what matched --fail-on.",
        flags=("-q", "--quiet"),
    )
    details: bool = option(False, "Output", "Of several layers show all of each, not of the worst alone.")
    embed_data: bool = option(False, "Output", "Put the JSON into the HTML page.")

    def look(self, read: Sequence[Path] = ()) -> Look:
        """How the result is to be shown; asks stdout what it is. read : the files that it was made of."""
        from gradscope.report.terminal import terminal_for

        terminal = terminal_for(self.color, to_file=self.output is not None)
        return Look(
            terminal,
            verdict_only=self.quiet,
            all_lags=self.lags == "all",
            every_layer=self.details,
            embed_data=self.embed_data,
            origin=self._origin(read),
        )

    def _origin(self, read: Sequence[Path]) -> dict[str, str]:
        """What a page says of the command and its files; to hash them takes a second for every gigabyte."""
        if "html" not in (self.format, *(name for name, _ in self.others)):
            return {}
        from gradscope.cli.origin_of import origin_of

        return origin_of(read)

    @property
    def one_line(self) -> bool:
        """Whether the verdict's line is all that is shown."""
        return self.quiet and self.format == "table"

    @property
    def alone(self) -> bool:
        """Whether nothing is told of any layer either, nor looked for in it."""
        return self.one_line and not (self.fail_on or self.also or self.write_baseline)

    @property
    def others(self) -> list[tuple[str, Path | None]]:
        """The further formats, each with its file, None for stdout; raises InputError."""
        found = []
        for text in self.also:
            name, equals, file = text.partition("=")
            if not equals or not file:
                raise InputError(f"--also is {quoted(text)}, expected FORMAT=FILE such as junit=report.xml")
            if name not in FORMATS:
                near = nearest_or_all(name, FORMATS)
                raise InputError(f"--also {quoted(text)}: there is no format {quoted(name)}{near}")
            found.append((name, file_unless_stdout(file)))
        return found

    def ready(self, kind: str, *read: Path | None) -> None:
        """Raise InputError now, not after the work, if a result of this class could not be written.

        read : files that are to be read, which none that is written may be.
        """
        from gradscope.cli.streams import check_writable, same_file

        files = [self.output]
        for name, file in [(self.format, None), *self.others]:
            check_format(name, kind)
            if file is not None and any(other is not None and same_file(file, other) for other in files):
                raise InputError(f"--also {name}={file}: is written already, choose another")
            check_writable(file, *read, option="--also")
            files.append(file)
        check_writable(self.output, *read)
        check_writable(self.write_baseline, option="--write-baseline")

    def write(self, result: Told, read: Sequence[Path] = (), *, first: bool = True) -> None:
        """Render the result in every format that is asked for, then write all.

        read : what it was made of; first : whether the first format is among them, or was written as it came.
        """
        from gradscope.cli.step_summary import summarize
        from gradscope.cli.streams import say_written, write_result

        told = [(self.format, self.output), *self.others]
        texts = [
            (render(result, name, self._look_of(file, read)), name, file)
            for name, file in told[0 if first else 1 :]
        ]
        for text, name, file in texts:
            write_result(text, file)
            if name == "html":
                say_written(file, text, quiet=self.quiet)
        if any(name == "github" for name, _ in told):
            summarize(render(result, "markdown", self.look()))

    def keep(self, baseline: str) -> None:
        """Write the text of a baseline where it is asked for."""
        from gradscope.cli.streams import write_result

        if self.write_baseline is not None:
            write_result(baseline, self.write_baseline, "--write-baseline")

    def _look_of(self, file: Path | None, read: Sequence[Path]) -> Look:
        """As ``look``, but of a file the page is plain."""
        from gradscope.report.terminal import terminal_for

        return replace(self.look(read), terminal=terminal_for(self.color, to_file=file is not None))


# Of these, what any result can be asked for; and an analysis of no layers.
PAGE = ("format", "output", "also", "color")
BARE = tuple(one.name for one in fields(Output) if one.name != "details")


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


def finish(analysis: Analysis, output: Output, read: Sequence[Path] = ()) -> int:
    """Render, write, say what matched ``--fail-on``, and how to exit; read : the files it was made of."""
    analysis = analysis.matching(output.fail_on)
    output.write(analysis, read)
    if output.write_baseline:
        from gradscope.gate.baseline import baseline_text, entry_of
        from gradscope.gate.findings import suite_of

        output.keep(baseline_text({suite_of(analysis): entry_of([analysis])}))
    return say_matched(analysis.verdict.matched)


def say_matched(matched: Sequence[Matched]) -> int:
    """What has a level that was looked for, on stderr; and how to exit."""
    if not matched:
        return ExitCode.OK
    each = [f"{one.level} (layer {shown(one.layer)})" if one.layer else one.level for one in matched]
    from gradscope.cli.streams import tell

    tell(f"gradscope: --fail-on matched: {listed(each)}")
    return ExitCode.FINDING


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
