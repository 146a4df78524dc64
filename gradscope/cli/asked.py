"""What ``gradscope analyze`` is asked, by what the options are about."""

from __future__ import annotations

import click

from gradscope.cli.options import Command, decorated, max_size_option, section

_CHECKPOINT = section(
    "Checkpoint",
    click.option(
        "--layer",
        multiple=True,
        metavar="NAME",
        help="A layer of the checkpoint, or a module with all its layers: its name or the end of it "
        "(repeatable; default: all layers).",
    ),
    click.option(
        "--activation",
        metavar="NAME",
        help="tanh, relu, sigmoid or linear, where the checkpoint does not say.",
    ),
    max_size_option,
)
_CELL = section(
    "Cell",
    click.option("--cell", metavar="NAME", help="A built-in cell (default lstm) or package.module:factory."),
    click.option("--hidden", type=int, metavar="N", help="Hidden size (default 64)."),
    click.option("--input-size", type=int, metavar="D", help="Input size (default 32)."),
    click.option(
        "--init",
        metavar="NAME",
        help="pytorch (default), keras, flax, gaussian, orthogonal, identity or chrono.",
    ),
    click.option("--gain", type=float, metavar="G", help="Multiply every recurrent matrix by G."),
    click.option("--forget-bias", type=float, metavar="B", help="Set b_f."),
    click.option("--input-bias", type=float, metavar="B", help="Set b_i."),
    click.option("--output-bias", type=float, metavar="B", help="Set b_o."),
    click.option("--update-bias", type=float, metavar="B", help="Set b_z of a GRU."),
    click.option("--reset-bias", type=float, metavar="B", help="Set b_r of a GRU."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights and inputs."),
)
_INPUTS = section(
    "Inputs",
    click.option(
        "--inputs",
        default="normal",
        show_default=True,
        metavar="KIND|FILE",
        help="normal, zeros, or a .npy, .npz, .safetensors or .csv file of shape (T, d) or (B, T, d); "
        "FILE.npz:NAME picks one of several arrays.",
    ),
    click.option("--steps", type=int, metavar="T", help="Steps (default 200, or all that --inputs has)."),
    click.option("--batch", type=int, metavar="B", help="Independent input sequences (default 1)."),
    click.option("--time-major", is_flag=True, help="--inputs has the time first: (T, B, d)."),
    click.option(
        "--embedding",
        metavar="NAME",
        help="--inputs are token ids, (T,) or (B, T), for this embedding of the checkpoint.",
    ),
    click.option(
        "--lengths",
        metavar="FILE",
        help="How many steps of each sequence there are, (B,): each is analysed over its own length.",
    ),
    click.option(
        "--initial-state",
        metavar="FILE",
        help="h0, and c0 of an LSTM, in a .npz or .safetensors: (n,) or (B, n); of L layers (L, B, n).",
    ),
)
_LOSS = section(
    "Loss, followed back beside the worst case",
    click.option(
        "--readout",
        metavar="NAME",
        help="A Linear or Dense layer of the checkpoint: follow back the sum of what it puts out.",
    ),
    click.option(
        "--readout-at",
        type=click.Choice(["last", "every"]),
        help="Whether it reads the last step (default) or every step.",
    ),
    click.option(
        "--adjoint",
        metavar="FILE",
        help="Follow back a loss by its derivatives dL/dh: (n,), (B, n) at the last step or (B, T, n).",
    ),
)
_MEASUREMENT = section(
    "Measurement",
    click.option("--cut", multiple=True, metavar="PATH", help="Drop a path, such as R_o (repeatable)."),
    click.option(
        "--view",
        type=click.Choice(["state", "cell"]),
        default="state",
        show_default=True,
        help="The chain of the whole state, or of an LSTM's cell state alone (dc_t/dc_(t-1)).",
    ),
    click.option(
        "--top",
        metavar="K|all",
        help="Singular values to compute, without Jacobians (default all; 8 where the state is above 1024).",
    ),
    click.option(
        "--accuracy",
        type=click.Choice(["full", "fast"]),
        default="full",
        show_default=True,
        help="Every singular value as right as float64 allows, or to about 1e-6, sooner if possible.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float64", "float32"]),
        help="Precision of states and Jacobians (default float64; float32 on TPU).",
    ),
)
_MACHINE = section(
    "Machine",
    click.option("--platform", metavar="NAME", help="cpu, gpu or tpu (default: what JAX finds)."),
    click.option(
        "--devices",
        type=int,
        metavar="N",
        help="Spread the batch over N GPUs or TPUs, or N cores of a CPU (default: all).",
    ),
    click.option("--distributed", is_flag=True, help="Share the batch with other processes of a cluster."),
    click.option("--coordinator", metavar="HOST:PORT", help="Its process 0, if JAX cannot find it."),
    click.option("--num-processes", type=int, metavar="N", help="How many processes it has."),
    click.option("--process-id", type=int, metavar="I", help="Which of them this one is, 0 to N - 1."),
    click.option(
        "--compile-cache/--no-compile-cache",
        default=True,
        help="Keep compiled programs between runs (in GRADSCOPE_CACHE_DIR).",
    ),
)


def asked_options(command: Command) -> Command:
    """Decorate a click command with all of them."""
    return decorated(command, (_CHECKPOINT, _CELL, _INPUTS, _LOSS, _MEASUREMENT, _MACHINE))
