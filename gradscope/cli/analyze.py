"""``gradscope analyze``: a cell at initialisation, or a trained layer."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from gradscope.cells import CELLS
from gradscope.cli.asked import asked_options
from gradscope.cli.group import Command
from gradscope.cli.options import (
    Output,
    find_modules_here,
    finish,
    output_options,
    take_output,
)
from gradscope.errors import InputError

First = Callable[[Callable[[], Any]], Any]

# Option -> the bias it sets, in the notation of Greff et al. and of the GRU.
_BIASES = {
    "forget_bias": "b_f",
    "input_bias": "b_i",
    "output_bias": "b_o",
    "update_bias": "b_z",
    "reset_bias": "b_r",
}


@click.command(cls=Command, epilog=f"Cells: {', '.join(CELLS)}, lstm-projected-P.")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@asked_options
@output_options
def analyze(**options: Any) -> int:
    """Measure how the gradient flows through a recurrent cell.

    \b
    Examples:
      gradscope analyze --cell lstm --steps 200
      gradscope analyze --cell rnn --init gaussian --gain 1.5
      gradscope analyze --cell gru --hidden 128 --init keras --batch 8
      gradscope analyze --cell lstm --forget-bias 3 --cut R_o
      gradscope analyze model.safetensors --inputs x.npy --json | jq .verdict.level
      gradscope analyze model.pt --layer encoder.l0 --inputs x.npy
      gradscope analyze model.pt --inputs x.csv --initial-state state.npz
      gradscope analyze model.pt --inputs ids.npy --embedding tokens --lengths n.npy
      gradscope analyze weights.npz --cell lstm-peephole --fail-on exploding
      gradscope analyze --cell mypackage.cells:my_cell

    CHECKPOINT is a model of PyTorch (.pt, .safetensors), Keras (.keras, .h5), Flax (.msgpack) or ONNX
    with an RNN, LSTM or GRU in it (gradscope inspect lists them), or weights in gradscope's notation
    (.npz: W_z, R_z, b_z, ...). Without it the cell is freshly initialised.
    """
    output = take_output(options)
    cluster = {name: options.pop(name) for name in ("coordinator", "num_processes", "process_id")}
    find_modules_here()
    if options["platform"] == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # or JAX takes hold of the GPU all the same
    if options["distributed"]:
        return _together(cluster, options, output)
    for name, value in cluster.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} is {value!r} without --distributed: give both")
    return _analyze(options, output, lambda attempt: attempt())


def _analyze(options: dict[str, Any], output: Output, first: First) -> int:
    """Analyse and write. ``first`` calls what only the first process of a cluster is to do."""
    from gradscope.cli.progress import progress_bar
    from gradscope.cli.streams import check_writable, guarded_stdout, hushed

    read = [_file_of(options[name]) for name in ("inputs", "lengths", "initial_state", "adjoint")]
    first(lambda: check_writable(output.output, options["checkpoint"], *read))
    compile_cache = options.pop("compile_cache")
    biases = {bias: options.pop(name) for name, bias in _BIASES.items() if options[name] is not None}
    if (options["top"] or "").isdecimal():
        options["top"] = int(options["top"])
    given = {
        name: value for name, value in options.items() if name not in _BIASES and value not in (None, ())
    }
    with guarded_stdout(), hushed(output.quiet), progress_bar(output.quiet) as progress:
        with _uncollected():
            from gradscope.api import analyze
            from gradscope.machine import use_compilation_cache
        if compile_cache:
            use_compilation_cache()
        analysis = analyze(
            **given,
            biases=biases,
            vanishing_below=output.vanishing_below,
            exploding_above=output.exploding_above,
            progress=progress,
        )
    if options["top"] is None and (top := analysis.problem["top"]) is not None and not output.quiet:
        said = f"top {top} of {analysis.full.size} singular values computed; --top all computes every one"
        first(lambda: click.echo(said, err=True))
    code: int = first(lambda: finish(analysis, output))
    return code


def _together(cluster: dict[str, Any], options: dict[str, Any], output: Output) -> int:
    """The same as one of many processes, which all exit with the code of the first."""
    from gradscope.cli.streams import guarded_stdout, hushed, silence

    with guarded_stdout(), hushed(output.quiet):
        from gradscope.machine import divide_cpu
        from gradscope.measure.cluster import exchange, first, join, leads, leave

        if options["devices"] is not None:
            divide_cpu(options["devices"])  # JAX starts when the processes meet
        join(**cluster)
        exchange(lambda: None)  # what connects the processes prints to stdout
    try:
        if not leads():
            silence()
        return _analyze(options, output, first)
    finally:
        leave()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Within, nothing is garbage, and what there is at the end never will be.

    Looking for garbage among all that JAX imports takes a tenth of the start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _file_of(given: str | None) -> Path | None:
    """The file that an option reads, if it is one."""
    from gradscope.formats.numpy_files import split_key

    return None if given in (None, "normal", "zeros") else Path(split_key(given)[0])
