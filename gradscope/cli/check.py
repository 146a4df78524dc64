"""``gradscope check``: analyses held to budgets, for continuous integration."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field)

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gradscope.cli.defaults import set_defaults
from gradscope.cli.elsewhere import as_flags
from gradscope.cli.group import Command, SectionedOption
from gradscope.cli.importing import importing
from gradscope.cli.kept_rows import SHARD, coming, dealt, journal_at, shard_here
from gradscope.cli.options import (
    Process,
    input_files,
    options,
    pick,
    pick_said,
    ready_to_measure,
)
from gradscope.cli.output import Output, as_path, file_unless_stdout
from gradscope.cli.progress import progress_bar, progress_of_runs
from gradscope.cli.streams import check_writable, guarded_stdout, hushed, say, sayer, write_result
from gradscope.config_file import read_config
from gradscope.errors import ExitCode, InputError, nearest_or_all, quoted, shown
from gradscope.option import option
from gradscope.rows.journal import CHECK
from gradscope.settings import CELL, Settings

if TYPE_CHECKING:
    from gradscope.cli.progress import Pace
    from gradscope.config_file import ConfigFile
    from gradscope.gate.baseline import Entry
    from gradscope.gate.checks import Checking, Checks
    from gradscope.gate.config import PlannedRun
    from gradscope.rows.journal import Journal
    from gradscope.rows.shards import Shard

_OUTPUT = tuple(
    one.name
    for one in fields(Output)
    if one.name not in ("fail_on", "lags", "details", "embed_data", "output")
)
_NOT_HERE = {
    "fail_on": "fails by verdict, check by limits: give --max log10_norm=3 and --min log10_norm=-3, say",
    "distributed": "shares one analysis between processes: leave it out, or deal analyses out by --shard",
    "suggest": "adds to an analysis what to do about it: gradscope suggest tells it of one",
}
# --config is here the file of budgets.
_SETTINGS = tuple(one.name for one in fields(Settings) if one.name != "config" and one.name not in _NOT_HERE)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Which budgets are to be kept."""

    name: tuple[str, ...] = option(
        (), "Budgets", "Only this analysis of the file (repeatable).", metavar="NAME", repeatable=True
    )
    shard: str | None = option(
        None,
        "Budgets",
        f"Only every Nth analysis of the file from the Ith {SHARD} Then -o keeps rows, as track does, and "
        "merge tells of them all.",
        metavar="I/N|auto",
    )
    max: tuple[str, ...] = option(
        (),
        "Budgets",
        "Most that a metric may be, in place of a file (repeatable).",
        metavar="METRIC=NUMBER",
        repeatable=True,
    )
    min: tuple[str, ...] = option(
        (), "Budgets", "Least that it may be (repeatable).", metavar="METRIC=NUMBER", repeatable=True
    )
    baseline: Path | None = option(
        None,
        "Budgets",
        "What budgets of change.METRIC count from (default: baseline = FILE of the configuration).",
        metavar="FILE",
        parse=as_path,
    )
    update_budgets: bool = option(
        False, "Budgets", "Write limits that hold, rounded outward, in place of those that are broken."
    )
    output: str | None = option(
        None,
        "Output",
        "Write to FILE; - is stdout. With --shard: append rows to FILE, or to one in FOLDER/, and keep those "
        "that are there: what was stopped goes on.",
        flags=("-o", "--output"),
        metavar="FILE",
    )


# Called before each run of an analysis with its number, returns further arguments of ``analyze``.
Begun = Callable[[int], Mapping[str, Any]]


def _take_up(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Have every other option of the command's default from this file, in place of the nearest."""
    if path is not None and not context.resilient_parsing:
        set_defaults(context, read_config(path))


_MOST_USED = (
    *("--config", "--name", "--max", "--min", "--baseline", "--write-baseline", "--update-budgets"),
    *("--format", "--also", "--quiet", "--help"),
)


@click.command(
    cls=Command,
    short_help="Hold analyses to budgets: exit 1 if one is broken.",
    most_used=_MOST_USED,
    lacking=as_flags(_NOT_HERE),
)
@click.option(
    "--config",
    cls=SectionedOption,
    section="Budgets",
    type=click.Path(path_type=Path),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_take_up,
    help="Analyses and budgets (default: gradscope.toml or pyproject.toml, here or above).",
)
@options(Gate)
@options(Output, _OUTPUT)
@options(Settings, _SETTINGS)
@options(Process, ["compile_cache"])
def check(**given: Any) -> int:
    """Run analyses and hold what is measured to budgets.

    \b
    Examples:
      gradscope check
      gradscope check --format github --also junit=report.xml
      gradscope check --cell lstm --steps 200 --max log10_norm=3 --min horizon=10
      gradscope check model.pt --inputs x.npy --min horizon.carousel=100
      gradscope check --write-baseline baseline.json
      gradscope check --update-budgets
      gradscope check --shard 2/8 -o rows/ && gradscope merge rows/ --format table

    \b
    gradscope.toml (in pyproject.toml [tool.gradscope.analyses.small]):
      [analyses.small]
      cell = "gru"                   # any option of analyze, as Python spells it
      steps = 30                     # seed = [0, 1, 2] runs each
      [analyses.small.budgets]
      log10_norm = {max = 3}         # and severity = "warn" or "off"
      horizon = {min = 10, aggregation = "pessimistic"}
      "change.rate" = {max = 0.01}   # from a baseline, up or down

    Metrics: log10_norm, rate, horizon and log10_largest_gain, each of a path (horizon.carousel) or a layer
    (rate.encoder.l0) too; share.R_o, saturated.f; of a loss log10_gradient, clip_factor, tbptt_bias; of masks
    masked_log10_norm, masked_rate, masked_horizon. Options given here go before the file's. Exit 1: a budget
    is broken; 2: none is, but something could not be measured.
    """
    gate, process = pick(Gate, given), pick(Process, given)
    output = replace(pick(Output, given), output=file_unless_stdout(gate.output) if gate.output else None)
    said, shared = pick_said(given)
    file = click.get_current_context().obj
    plan = _plan(gate, file, shared, said)
    work = Assignment.of(plan, gate, output)
    ready_to_measure(*(one.settings for one in work.mine))
    files = [name for one in work.mine for name in input_files(one.settings)]
    files += [file.path] if file else []
    work.page.ready("Checks", *files)
    if gate.update_budgets:
        _check_updatable(None if plan[0].in_shell else file)
    checks = _run(work, gate, process, files)
    if output.write_baseline:
        from gradscope.gate.baseline import baseline_text

        output.keep(baseline_text(checks.entries))
    if file is not None and gate.update_budgets and checks.broken:
        return _update(checks, file, output)
    if not work.in_rows:
        work.page.write(checks, files)
    return checks.exit_code


# -- what is to be run -------------------------------------------------------------------------------


def _plan(
    gate: Gate, file: ConfigFile | None, shared: Mapping[str, Any], said: Mapping[str, Any]
) -> list[PlannedRun]:
    """The analyses with their budgets: those of the shell, or of the file."""
    from gradscope.gate.budgets import budgets_of
    from gradscope.gate.config import PlannedRun, planned

    if budgets := budgets_of(gate.min, gate.max):
        for option_name, given in (("--name", gate.name), ("--shard", gate.shard)):
            if given:
                raise InputError(
                    f"--max and --min are in place of the file's analyses: leave out {option_name}"
                )
        name = shown(said.get("checkpoint") or said.get("cell") or CELL)
        return [PlannedRun(name, {}, (), budgets, {}, in_shell=True).between(shared, said)]
    if file is None:
        raise InputError(
            "nothing to check: no gradscope.toml, nor a pyproject.toml with [tool.gradscope], is here or "
            "above: write one (gradscope check --help shows how) or give limits, such as --max log10_norm=3"
        )
    every = planned(file)
    names = [one.name for one in every]
    for name in gate.name:
        if name not in names:
            raise InputError(f"--name is {quoted(name)}{nearest_or_all(name, names)}")
    if not any(one.budgets for one in every):
        what = "budgets" if names else "analyses"
        raise InputError(
            f"{shown(file.path)}: nothing to check: has no {what} (gradscope check --help shows how)"
        )
    chosen = [one for one in every if not gate.name or one.name in gate.name]
    return [one.between(shared, said) for one in chosen]


@dataclass(frozen=True)
class Assignment:
    """What this process has to do of all analyses, and where what it finds goes.

    numbered : its analyses with their places in the whole, of which there are ``count``; rows : the file that
    keeps them, as -o has it of a shard; page : everything else that is written.
    """

    numbered: Sequence[tuple[int, PlannedRun]]
    count: int
    shard: Shard | None
    rows: str | None
    page: Output

    @classmethod
    def of(cls, plan: Sequence[PlannedRun], gate: Gate, output: Output) -> Assignment:
        """All of a plan, or the shard that is said."""
        shard = shard_here(gate.shard)
        if shard is None:
            return cls(list(enumerate(plan)), len(plan), None, None, output)
        if gate.update_budgets:
            raise InputError("--update-budgets rewrites a file that all shards read: leave out --shard")
        numbered = dealt(shard, plan, "analyses", sayer(output.quiet))
        return cls(numbered, len(plan), shard, gate.output, replace(output, output=None))

    @property
    def mine(self) -> list[PlannedRun]:
        """The analyses of this process."""
        return [one for _, one in self.numbered]

    @property
    def in_rows(self) -> bool:
        """Whether JSON lines are the rows of a shard, which have been told as they came."""
        return self.shard is not None and self.page.format == "jsonl"


def _baseline(gate: Gate) -> tuple[Mapping[str, Entry] | None, str]:
    """What changes are counted from, and what is said where that lacks something."""
    from gradscope.gate.baseline import read_entries

    path = gate.baseline
    if path is None:
        return None, "no baseline is given: --baseline FILE, or baseline = FILE in the settings file"
    source = click.get_current_context().get_parameter_source("baseline")
    if source == ParameterSource.DEFAULT_MAP and not path.exists():  # it may be what is to be written
        lacking = f"baseline {shown(path)} does not exist"
        return None, f"{lacking}: gradscope check --write-baseline {shown(path)} writes it"
    found = read_entries(path)
    if found is None:
        raise InputError(f"{shown(path)}: is no baseline: gradscope check --write-baseline writes one")
    return found, f"baseline {shown(path)} lacks it: gradscope check --write-baseline writes a new one"


# -- running it --------------------------------------------------------------------------------------


def _run(work: Assignment, gate: Gate, process: Process, files: Sequence[Path]) -> Checks:
    output = work.page
    baseline, lacking = _baseline(gate)
    journal = journal_at(work.rows, work.shard, CHECK, sayer(output.quiet), files)
    with progress_bar(output.quiet) as pace:
        begun = _begun(pace, work.mine)
        with guarded_stdout(), hushed(output.quiet):
            with importing(compile_cache=process.compile_cache):
                from gradscope.api import analyze
                from gradscope.gate.checks import Checking, Checks, places_of
            checking = Checking(analyze, work.count, baseline, lacking, output.write_baseline is not None)
            if work.shard is None:
                done = tuple(checking(one, more) for one, more in zip(work.mine, begun, strict=True))
                return Checks(done, places_of(work.mine))
        return _rows_of(work, checking, begun, journal)


def _rows_of(
    work: Assignment,
    checking: Checking,
    begun: Sequence[Begun],
    journal: Journal | None,
) -> Checks:
    """Of a shard: every analysis is a row as soon as it is done, kept where there is a file for it."""
    from gradscope.track.checked import HeldAnalysis, checks_of

    pieces = [
        (place, HeldAnalysis(one, checking, more))
        for (place, one), more in zip(work.numbered, begun, strict=True)
    ]
    rows = []
    for row in coming(pieces, work.count, CHECK, journal, quiet=work.page.quiet):
        if work.in_rows and journal is None:
            write_result(json.dumps(row, allow_nan=False) + "\n", None)
        rows.append(row)
    return checks_of(rows)


def _begun(pace: Pace | None, work: Sequence[PlannedRun]) -> list[Begun]:
    """Of every analysis what is called before each of its runs: see ``progress_of_runs``."""
    runs = [len(one.seeds) for one in work]
    tell = progress_of_runs(pace, sum(runs))
    return [
        partial(lambda name, before, run: tell(name, before + run), one.name, sum(runs[:number]))
        for number, one in enumerate(work)
    ]


# -- limits that hold --------------------------------------------------------------------------------


def _check_updatable(file: ConfigFile | None) -> None:
    """Raise InputError before the work if budgets could not be updated after it."""
    from gradscope.gate.update import check_toml_writer

    if file is None:
        raise InputError(
            "--update-budgets rewrites a file: give budgets in gradscope.toml, not --max and --min"
        )
    check_toml_writer()
    check_writable(file.path, option="--update-budgets")


def _update(checks: Checks, file: ConfigFile, output: Output) -> int:
    """Rewrite the file, and show the difference as the result."""
    from gradscope.gate.update import updated

    difference, text, left = updated(file, checks)
    for line in left:
        say(line)
    write_result(text, file.path, "--update-budgets")
    write_result(difference, output.output)
    return ExitCode.judged(broken=left, lost=checks.unmeasured or checks.failures)
