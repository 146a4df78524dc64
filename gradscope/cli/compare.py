"""``gradscope compare``: what has changed between two results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradscope.cli.group import Command
from gradscope.cli.importing import importing
from gradscope.cli.options import Process, input_files, options, pick, pick_said, ready_to_measure
from gradscope.cli.output import Output
from gradscope.cli.progress import progress_bar, progress_of_runs
from gradscope.cli.streams import guarded_stdout, hushed
from gradscope.settings import Settings

if TYPE_CHECKING:
    from gradscope.gate.baseline import Entry

_OUTPUT = tuple(
    one.name
    for one in fields(Output)
    if one.name not in ("fail_on", "lags", "details", "embed_data", "write_baseline")
)
_SETTINGS = tuple(
    one.name for one in fields(Settings) if one.name not in ("checkpoint", "distributed", "suggest")
)


@click.command("compare", cls=Command, short_help="Show what has changed between two results.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--fail-on-change",
    "limits",
    multiple=True,
    metavar="METRIC:NUMBER",
    help="Exit 1 if this metric changed by more, either way and beyond the errors (repeatable).",
)
@options(Output, _OUTPUT, section="Options")
@options(Settings, _SETTINGS)
@options(Process, ["compile_cache"])
def compare_results(old: Path, new: Path, limits: tuple[str, ...], **given: Any) -> int:
    """Show what has changed from OLD to NEW: by how much, in which path and layer.

    \b
    Examples:
      gradscope compare before.json after.json
      gradscope compare baseline.json model.pt --inputs x.npy
      gradscope compare step_1000.pt step_2000.pt --fail-on-change log10_norm:0.5

    Each is what analyze --json, --write-baseline or Analysis.save has written, or a checkpoint, which is
    analysed with the options given here. What is within the estimated errors of both has not changed.
    """
    output, process = pick(Output, given), pick(Process, given)
    said, shared = pick_said(given)
    settings = shared | said
    ready_to_measure(settings)
    files = [old, new, *input_files(settings)]
    output.ready("Comparison", *files)
    with guarded_stdout(), hushed(output.quiet):
        from gradscope.gate.baseline import read_entries
        from gradscope.gate.compare import Allowed, changes_between

        allowed = [Allowed.parse(one) for one in limits]
        entries = [read_entries(path) for path in (old, new)]
        models = [path for path, found in zip((old, new), entries, strict=True) if found is None]
        measured = _measure(models, settings, output, process)
        both = [measured.pop(0) if found is None else found for found in entries]
        comparison = changes_between(both[0], both[1], (str(old), str(new)), allowed)
    output.write(comparison, files)
    return comparison.exit_code


def _measure(
    models: list[Path], settings: dict[str, Any], output: Output, process: Process
) -> list[Mapping[str, Entry]]:
    """The entries of checkpoints, each analysed."""
    if not models:
        return []
    with progress_bar(output.quiet) as pace:
        with importing(compile_cache=process.compile_cache):
            from gradscope.api import analyze
            from gradscope.gate.baseline import entry_of
        begun = progress_of_runs(pace, len(models))
        return [
            {"": entry_of([analyze(checkpoint=path, **settings, **begun(str(path), run))])}
            for run, path in enumerate(models)
        ]
