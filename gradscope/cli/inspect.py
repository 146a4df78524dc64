"""``gradscope inspect``: the recurrent layers in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from gradscope.cli.group import Command
from gradscope.cli.options import find_modules_here, max_size_option, page_options


@click.command(cls=Command, short_help="List the recurrent layers in a checkpoint.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cell", metavar="NAME", help="The cell of a native file, where it is one of your own.")
@max_size_option
@page_options
def inspect(
    file: Path, cell: str | None, max_size: int | None, output_format: str, output: Path | None, color: str
) -> None:
    """List the recurrent layers in a checkpoint: sizes, directions, norms, and what the file leaves open.

    \b
    Examples:
      gradscope inspect model.pt
      gradscope inspect model.keras --json | jq -r '.layers[].name'

    FILE is a model of PyTorch (.pt, .pth, .bin, .ckpt, .jit, .pkl, .safetensors), Keras (.keras, .h5), Flax
    (.msgpack, .npz, .safetensors) or ONNX, or weights in gradscope's notation. Nothing in it is run.
    """
    from gradscope.cli.streams import check_writable, guarded_stdout, write_result

    check_writable(output, file)
    with guarded_stdout():
        find_modules_here()
        from gradscope.report.inspection import inspect as inspect_file

        found = inspect_file(file, cell, max_size)
    if output_format == "json":
        import json

        write_result(json.dumps(found.to_dict(), allow_nan=False) + "\n", output)
        return
    from gradscope.report.inspection_table import render_contents
    from gradscope.report.terminal import terminal_for

    write_result(render_contents(found, terminal_for(color, to_file=output is not None)), output)
