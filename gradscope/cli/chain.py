"""``gradscope chain``: any stack of Jacobians."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from gradscope.cli.elsewhere import as_flags
from gradscope.cli.group import Command
from gradscope.cli.importing import importing
from gradscope.cli.options import options, pick
from gradscope.cli.output import BARE, Output, finish
from gradscope.cli.streams import guarded_stdout, hushed
from gradscope.settings import Policy, Settings

_NOT_HERE = dict.fromkeys(
    (one.name for one in fields(Settings)),
    "is about a cell or a checkpoint, FILE has Jacobians that are there: gradscope analyze takes it",
)


@click.command(
    cls=Command,
    short_help="Measure the product of a stack of Jacobians.",
    lacking=as_flags(_NOT_HERE),
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--top", type=int, metavar="K", help="The K largest singular values only (default all).")
@options(Policy)
@options(Output, BARE)
def chain(file: Path, top: int | None, **given: Any) -> int:
    """Measure the product J_T ... J_1 of a stack of Jacobians.

    \b
    Examples:
      gradscope chain jacobians.npy
      gradscope chain jacobians.npy --json | jq '.chains[0].log10_norm.median'
      gradscope chain - < jacobians.npy

    FILE is a .npy array of shape (T, m, m), - is stdin; item t is the Jacobian of step t + 1.
    """
    policy, output = pick(Policy, given), pick(Output, given)
    output.ready("Analysis", file)
    with guarded_stdout(), hushed(output.quiet):
        with importing(compile_cache=False):  # nothing is compiled
            from gradscope.api import analyze_chain
        from gradscope.formats.jacobians import read_jacobians

        analysis = analyze_chain(
            read_jacobians(file), "stdin" if str(file) == "-" else str(file), policy, top
        )
    return finish(analysis, output, [file])
