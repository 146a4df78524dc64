"""``gradscope analyze``: a cell at initialisation, or a trained layer."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from gradscope.cells import CELLS, FAMILIES, NORMED
from gradscope.cli.group import Command
from gradscope.cli.importing import importing
from gradscope.cli.options import (
    Process,
    check_cell_and_file,
    input_files,
    options,
    pick,
    pick_settings,
    ready_to_measure,
)
from gradscope.cli.output import Output, finish
from gradscope.cli.progress import progress_bar
from gradscope.cli.streams import guarded_stdout, hushed, say, silenced
from gradscope.errors import InputError, flag
from gradscope.settings import Settings

if TYPE_CHECKING:
    from gradscope.cli.progress import Pace
    from gradscope.report.analysis import Analysis

First = Callable[[Callable[[], Any]], Any]


_OTHERS = "with other activations as lstm-relu, gru-tanh-hard_sigmoid=0.2 (docs/cells.md)"


# Wrapped here: click would break names at their hyphens.
_CELLS = textwrap.fill(
    f"Cells: {', '.join([*CELLS, *NORMED, *(f'{family}-P' for family in FAMILIES)])}; {_OTHERS}.",
    76,
    break_on_hyphens=False,
)


# Of its options those that -h shows.
MOST_USED = (
    *("--layer", "--cell", "--hidden", "--steps", "--init", "--gain", "--forget-bias", "--inputs", "--batch"),
    *("--cut", "--only", "--fail-on", "--json", "--output"),
)


@click.command(
    cls=Command,
    short_help="Measure how the gradient flows through a recurrent cell.",
    most_used=MOST_USED,
    epilog=f"\b\n{_CELLS}",
)
@options(Settings)
@options(Process)
@options(Output)
def analyze(**given: Any) -> int:
    """Measure how the gradient flows through a recurrent cell.

    \b
    Examples:
      gradscope analyze --cell lstm --steps 200
      gradscope analyze --cell rnn --init gaussian --gain 1.5
      gradscope analyze --cell gru --hidden 128 --init keras --batch 8
      gradscope analyze --cell lstm --forget-bias 3 --cut R_o
      gradscope analyze model.pt --inputs x.npy --json | jq .verdict.level
      gradscope analyze model.pt --layer encoder.l0 --inputs x.npy
      gradscope analyze model.pt --inputs x.csv --initial-state state.npz
      gradscope analyze model.pt --inputs ids.npy --embedding emb --lengths n.npy
      gradscope analyze weights.npz --cell lstm-peephole --fail-on exploding
      gradscope analyze --cell mypackage.cells:my_cell

    CHECKPOINT is a model of PyTorch (.pt, .safetensors), Keras (.keras, .h5), Flax (.msgpack), ONNX,
    TensorFlow 1 (.pb) or DyNet (.model) with an RNN, LSTM or GRU in it (gradscope inspect lists them), or
    weights in gradscope's notation (.npz: W_z, R_z, b_z, ...). Without it the cell is freshly initialised.
    """
    output, process = pick(Output, given), pick(Process, given)
    return answer(pick_settings(given), process, output)


def answer(settings: dict[str, Any], process: Process, output: Output) -> int:
    """Analyse with these settings, write, and how to exit."""
    ready_to_measure(settings)
    if settings.get("distributed"):
        return _together(settings, process, output)
    for name, value in process.place.items():
        if value is not None:
            raise InputError(f"{flag(name)} is {value!r} without --distributed: give both")
    check_cell_and_file(settings)
    return _analyze(settings, process, output, lambda attempt: attempt())


def _analyze(settings: dict[str, Any], process: Process, output: Output, first: First) -> int:
    """Analyse and write. ``first`` calls what only the first process of a cluster is to do."""
    files = input_files(settings)
    first(lambda: output.ready("Analysis", *files))
    with guarded_stdout(), hushed(output.quiet), progress_bar(output.quiet) as pace:
        with importing(compile_cache=process.compile_cache):
            from gradscope.api import analyze, analyze_together
        if output.one_line:
            settings |= {"only": "verdict"}
        if pace:
            settings |= {
                "progress": pace.report,
                "plan": _saying(pace),
                "trying": pace.say,
            }
        analysis = (analyze_together if output.alone else analyze)(**settings)
    top = analysis.problem["top"]
    if analysis.only in ("paths", "all") and "top" not in settings and top is not None and not output.quiet:
        said = f"top {top} of {analysis.full.size} singular values computed; --top all computes every one"
        first(lambda: say(said))
    first(lambda: _say_cores(analysis, settings.get("devices"), output))
    code: int = first(lambda: finish(analysis, output, files))
    return code


def _say_cores(analysis: Analysis, devices: int | None, output: Output) -> None:
    from gradscope.machine import cores

    if devices and devices > cores() and analysis.problem["backend"] == "cpu" and not output.quiet:
        many = (
            f"{cores()} cores: at most {cores()} sequences were"
            if cores() > 1
            else "1 core: one sequence was"
        )
        say(f"--devices {devices} on {many} measured at a time")


def _saying(pace: Pace) -> Callable[[str, float], None]:
    """Says what is to be done, and has its pace expected."""

    def plan(line: str, seconds: float) -> None:
        pace.expect(seconds)
        pace.say(line)

    return plan


def _together(settings: dict[str, Any], process: Process, output: Output) -> int:
    """The same as one of many processes: the first one writes, each says the error that ends all of them."""
    from gradscope.cli.cluster_place import check_place
    from gradscope.cli.supervised import give_up, split_off

    check_place(**process.place)
    if process.cluster_timeout < 1:
        raise InputError(f"--cluster-timeout is {process.cluster_timeout}, expected at least 1 second")
    ended = split_off(
        "--distributed: the processes did not meet, or one of them is gone: start all of them within "
        f"{process.cluster_timeout} s (--cluster-timeout), with one --coordinator whose port is free"
    )
    if ended is not None:
        return ended
    with guarded_stdout(), hushed(output.quiet):
        from gradscope.machine import divide_cpu
        from gradscope.measure.cluster import LostError, exchange, first, join, leads, leave

        if "devices" in settings:
            divide_cpu(settings["devices"])  # JAX starts when the processes meet
        join(**process.place, timeout=process.cluster_timeout)
    try:
        with guarded_stdout():  # what connects the processes prints to stdout
            exchange(lambda: None)
        with nullcontext() if leads() else silenced():
            return _analyze(settings, process, output, first)
    except LostError as error:
        give_up(str(error))
    finally:
        leave()
