"""``gradscope inspect``: the recurrent layers in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradscope.cli.group import Command
from gradscope.cli.options import find_modules_here, options, pick
from gradscope.cli.output import PAGE, Output
from gradscope.cli.streams import guarded_stdout
from gradscope.settings import Settings


@click.command(cls=Command, short_help="List the recurrent layers in a checkpoint.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cell", metavar="NAME", help="The cell of a native file, where it is one of your own.")
@options(Settings, ["map", "config", "max_size"], section="Options")
@options(Output, PAGE, section="Options")
def inspect(file: Path, cell: str | None, max_size: int | None, **given: Any) -> None:
    """List the recurrent layers in a checkpoint: sizes, directions, norms, and what the file leaves open.

    \b
    Examples:
      gradscope inspect model.pt
      gradscope inspect model.keras --json | jq -r '.layers[].name'

    FILE is a model of PyTorch (.pt, .pth, .bin, .ckpt, .jit, .pkl, .safetensors), Keras (.keras, .h5), Flax
    (.msgpack, .npz, .safetensors), ONNX, TensorFlow 1 (.pb) or DyNet (.model), or weights in gradscope's
    notation. Nothing in it is run.
    """
    output, rules, config = pick(Output, given), given.pop("map"), given.pop("config")
    output.ready("Inspection", file, *map(Path, filter(None, (*rules, config))))
    with guarded_stdout():
        find_modules_here()
        from gradscope.report.inspection import inspect as inspect_file

        found = inspect_file(file, cell, max_size, rules, config)
    output.write(found)
