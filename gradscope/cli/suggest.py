"""``gradscope suggest``: settings that reach a target, each verified."""

from __future__ import annotations

from typing import Any

import click

from gradscope.cli.advising import advised, pick_given
from gradscope.cli.elsewhere import as_flags
from gradscope.cli.group import Command
from gradscope.cli.importing import importing
from gradscope.cli.options import input_files, options, pick
from gradscope.cli.output import PAGE, Output, say_matched
from gradscope.settings import Suggesting

_MOST_USED = (
    *("--horizon", "--target", "--knob", "--layer", "--cell", "--hidden", "--steps", "--inputs", "--batch"),
    *("--fail-on", "--json", "--output"),
)
_OUT = (*PAGE, "fail_on", "quiet")


@click.command(
    cls=Command,
    most_used=_MOST_USED,
    lacking=as_flags(Suggesting.without()),
    short_help="Find settings that reach a gain or a horizon, verified.",
)
@options(Suggesting, Suggesting.names())
@options(Output, _OUT)
def suggest(**given: Any) -> int:
    """Find the settings of a network's knobs that reach a target, each verified by a second analysis.

    \b
    Examples:
      gradscope suggest --cell lstm --init keras --horizon 200
      gradscope suggest model.pt --inputs x.npy
      gradscope suggest model.pt --inputs x.npy --target critical --knob 'R_*'
      gradscope suggest model.pt --horizon 500 --json | jq '.suggestions[]'

    For every knob (the forget or update bias, the scale of one recurrent matrix or of all, the clipping of
    their singular values, for a fresh cell its initialisation, normalised inputs): the setting that reaches
    the target in the median of the batch, or that none does. gradscope repair writes it into a file.
    --fail-on is about the network as it is.
    """
    output = pick(Output, given)
    settings = pick_given(given)
    output.ready("Suggestions", *input_files(settings))
    with importing():
        from gradscope.api import suggest as find_settings

    found = advised(find_settings, settings, output)
    output.write(found)
    return say_matched(found.analysis.matching(output.fail_on).verdict.matched)
