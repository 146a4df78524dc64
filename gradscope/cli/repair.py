"""``gradscope repair``: the weights of a checkpoint with knobs set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradscope.cli.advising import advised, pick_given
from gradscope.cli.elsewhere import as_flags
from gradscope.cli.group import Command
from gradscope.cli.importing import importing
from gradscope.cli.options import input_files, options, pick
from gradscope.cli.output import Output, say_matched
from gradscope.cli.streams import check_writable
from gradscope.settings import Repairing

_MOST_USED = (
    *("--output", "--knob", "--horizon", "--target", "--floss", "--in-place", "--layer", "--cell"),
    *("--inputs", "--fail-on", "--json"),
)
_OUT = ("format", "color", "fail_on", "quiet")


@click.command(
    cls=Command,
    most_used=_MOST_USED,
    lacking=as_flags(Repairing.without()),
    short_help="Write a checkpoint with knobs set, and verify it.",
)
@options(Repairing, Repairing.names())
@options(Output, _OUT)
def repair(**given: Any) -> int:
    """Write the weights of a checkpoint with knobs set, under its own names, and analyse what was written.

    \b
    Examples:
      gradscope repair model.safetensors -o new.safetensors --knob 'b_f+=2.3'
      gradscope repair model.pt -o new.safetensors --knob b_f --horizon 200
      gradscope repair model.pt -o new.safetensors --knob 'R_*<=1.02'
      gradscope repair model.safetensors --in-place --knob 'layer1.R_z=x0.83'
      gradscope repair model.npz -o new.npz --cell lstm --floss 1

    \b
    Knobs: b_f+=2.3 adds, b_f=3.35 sets, R_z=x0.83 scales, R_*<=1.02 clips
    singular values; a name alone (b_f, R_z, R_*) is searched for the setting that
    reaches the target.

    Everything else in the file stays byte for byte: a .safetensors or .npz; of a PyTorch state dict a
    .safetensors is written, which load_state_dict takes. --fail-on is about the new file.
    """
    target = given.pop("output")  # of the weights; what is said of them goes to stdout
    output = pick(Output, given)
    given["output"] = target
    settings = pick_given(given)
    if "output" in settings:
        files = [] if settings.get("in_place") else input_files(settings)
        check_writable(Path(settings["output"]), *files)
    with importing():
        from gradscope.api import repair as write_repaired

    found = advised(write_repaired, settings, output)
    output.write(found)
    return say_matched(found.after.matching(output.fail_on).verdict.matched)
