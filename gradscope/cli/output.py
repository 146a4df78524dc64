"""What comes out of a command: in which formats, where, and the exit code that follows from it."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from gradscope.cli.streams import check_writable, same_file, say, say_written, write_result
from gradscope.errors import ExitCode, InputError, listed, nearest_or_all, quoted, shown
from gradscope.option import option
from gradscope.report.views import FORMATS, Look, Told, check_format, render
from gradscope.settings import Level

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis
    from gradscope.report.verdict import Matched

# Opened by its name, a stdout that is a file would lose what others have written to it.
_STDOUT = (Path("-"), Path("/dev/stdout"))


def as_path(text: str) -> Path:
    """A file of that name."""
    return Path(text)


def file_unless_stdout(text: str) -> Path | None:
    """A file of that name; None of what is stdout."""
    return None if Path(text) in _STDOUT else Path(text)


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
        if self.write_baseline is not None:
            write_result(baseline, self.write_baseline, "--write-baseline")

    def _look_of(self, file: Path | None, read: Sequence[Path]) -> Look:
        """As ``look``, but of a file the page is plain."""
        from gradscope.report.terminal import terminal_for

        return replace(self.look(read), terminal=terminal_for(self.color, to_file=file is not None))


# Of these, what any result can be asked for; and an analysis of no layers.
PAGE = ("format", "output", "also", "color")
BARE = tuple(one.name for one in fields(Output) if one.name != "details")


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
    say(f"--fail-on matched: {listed(each)}")
    return ExitCode.FINDING
