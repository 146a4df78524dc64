"""``gradscope check``: analyses held to budgets, for continuous integration."""

# ruff: noqa: RUF009  (``option`` makes a dataclass field)

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gradscope.cli.analyze import uncollected
from gradscope.cli.defaults import set_defaults
from gradscope.cli.group import Command, SectionedOption
from gradscope.cli.options import (
    Output,
    Process,
    as_path,
    input_files,
    options,
    pick,
    pick_settings,
    ready_to_measure,
)
from gradscope.config_file import read_config
from gradscope.errors import ExitCode, InputError, nearest_or_all, quoted, shown
from gradscope.rows.shards import Shard
from gradscope.settings import CELL, Settings, option

if TYPE_CHECKING:
    from gradscope.cli.progress import Pace
    from gradscope.config_file import ConfigFile
    from gradscope.gate.baseline import Entry
    from gradscope.gate.checks import Checks
    from gradscope.gate.config import PlannedRun

_OUTPUT = tuple(
    one.name for one in fields(Output) if one.name not in ("fail_on", "lags", "details", "embed_data")
)
# --config is here the file of budgets; --distributed is of a single analysis.
_SETTINGS = tuple(one.name for one in fields(Settings) if one.name not in ("config", "distributed"))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Which budgets are to be kept."""

    name: tuple[str, ...] = option(
        (), "Budgets", "Only this analysis of the file (repeatable).", metavar="NAME", repeatable=True
    )
    shard: str | None = option(
        None,
        "Budgets",
        "Only every Nth analysis of the file from the Ith on; auto: as the scheduler says (see track).",
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


def _take_up(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Have every other option of the command's default from this file, in place of the nearest."""
    if path is not None and not context.resilient_parsing:
        set_defaults(context, read_config(path))


_MOST_USED = (
    *("--config", "--name", "--max", "--min", "--baseline", "--write-baseline", "--update-budgets"),
    *("--format", "--also", "--quiet", "--help"),
)


@click.command(
    cls=Command, short_help="Hold analyses to budgets: exit 1 if one is broken.", most_used=_MOST_USED
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
    (rate.encoder.l0) too; share.R_o, saturated.f, clip_factor. Options given here go before the file's.
    Exit 1: a budget is broken; 2: something could not be measured.
    """
    gate, output, process = pick(Gate, given), pick(Output, given), pick(Process, given)
    said, shared = pick_said(given)
    file = click.get_current_context().obj
    plan = _plan(gate, file, shared, said)
    ready_to_measure(*(one.settings for one in plan))
    files = [name for one in plan for name in input_files(one.settings)]
    output.ready("Checks", *files, *([file.path] if file else []))
    if gate.update_budgets:
        _check_updatable(None if plan[0].in_shell else file)
    checks = _run(plan, _baseline(gate), output, process)
    if output.write_baseline:
        from gradscope.gate.baseline import baseline_text

        output.keep(baseline_text(checks.entries))
    if file is not None and gate.update_budgets and checks.broken:
        return _update(checks, file, output)
    output.write(checks)
    return checks.exit_code


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


# -- what is to be run -------------------------------------------------------------------------------


def _plan(
    gate: Gate, file: ConfigFile | None, shared: Mapping[str, Any], said: Mapping[str, Any]
) -> list[PlannedRun]:
    """The analyses with their budgets: those of the shell, or of the file."""
    from gradscope.gate.budgets import budgets_of
    from gradscope.gate.config import PlannedRun, planned

    if budgets := budgets_of(gate.min, gate.max):
        for name, given in (("--name", gate.name), ("--shard", gate.shard)):
            if given:
                raise InputError(f"--max and --min are in place of the file's analyses: leave out {name}")
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
    return [one.between(shared, said) for one in _dealt(chosen, gate.shard)]


def _dealt(chosen: list[PlannedRun], text: str | None) -> list[PlannedRun]:
    """Those that are this process's."""
    if text is None:
        return chosen
    shard = Shard.parse(text, os.environ)
    work = [one for _, one in shard.of(chosen)]
    if not work:
        raise InputError(f"{shard} has none of {len(chosen)} analyses: ask for fewer")
    click.echo(f"gradscope: {shard} ({shard.source}): {', '.join(shown(one.name) for one in work)}", err=True)
    return work


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


def _run(
    plan: Sequence[PlannedRun],
    baseline: tuple[Mapping[str, Entry] | None, str],
    output: Output,
    process: Process,
) -> Checks:
    from gradscope.cli.progress import progress_bar
    from gradscope.cli.streams import guarded_stdout, hushed

    with guarded_stdout(), hushed(output.quiet), progress_bar(output.quiet) as pace:
        with uncollected():
            from gradscope.api import analyze
            from gradscope.gate.checks import run_checks
            from gradscope.machine import use_compilation_cache
        if process.compile_cache:
            use_compilation_cache()
        return run_checks(
            plan,
            analyze,
            baseline=baseline[0],
            lacking=baseline[1],
            whole=output.write_baseline is not None,
            begun=saying(pace, sum(len(one.seeds) for one in plan)),
        )


def saying(pace: Pace | None, runs: int) -> Callable[[str, int], Mapping[str, Any]]:
    """What is told of each of several runs: arguments of ``analyze`` that show how far all of them are."""

    def begun(name: str, run: int) -> Mapping[str, Any]:
        if pace is None:
            return {}
        pace.report(run, runs)
        return {
            "progress": lambda done, total: pace.report(run + done / total, runs),
            "plan": lambda line, _: pace.say(f"gradscope: {shown(name)}: {line}"),
        }

    return begun


# -- limits that hold --------------------------------------------------------------------------------


def _check_updatable(file: ConfigFile | None) -> None:
    """Raise InputError before the work if budgets could not be updated after it."""
    from gradscope.cli.streams import check_writable
    from gradscope.gate.update import check_toml_writer

    if file is None:
        raise InputError(
            "--update-budgets rewrites a file: give budgets in gradscope.toml, not --max and --min"
        )
    check_toml_writer()
    check_writable(file.path, option="--update-budgets")


def _update(checks: Checks, file: ConfigFile, output: Output) -> int:
    """Rewrite the file, and show the difference as the result."""
    from gradscope.cli.streams import write_result
    from gradscope.gate.update import updated

    difference, text, left = updated(file, checks)
    for line in left:
        click.echo(f"gradscope: {line}", err=True)
    write_result(text, file.path, "--update-budgets")
    write_result(difference, output.output)
    return ExitCode.FINDING if left else ExitCode.USAGE if checks.unmeasured else ExitCode.OK
