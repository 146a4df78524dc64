"""What can be asked: every option once, for the command line and for Python, with its default and its words.

The command line makes its options from the fields of ``Settings`` (cli/options.py), ``gradscope.analyze`` its
signature and docstring (as_arguments.py). So this imports neither click nor NumPy nor JAX.
"""

# ruff: noqa: RUF009  (``option`` makes a dataclass field)

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from gradscope.errors import InputError, as_option
from gradscope.option import is_default, number_or_word, option, same_as, size_in_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from gradscope.cells.cell import Cell
    from gradscope.checkpoints.live import Live

View = Literal["state", "cell"]
Accuracy = Literal["full", "fast"]
# What is measured, each with what stands before it.
Only = Literal["verdict", "gain", "paths", "all"]
DType = Literal["float64", "float32"]
ReadoutAt = Literal["last", "every"]
Layout = Literal["cudnn", "keras"]
Platform = Literal["cpu", "gpu", "tpu"]
Activation = Literal["tanh", "relu", "sigmoid", "linear"]
Init = Literal["pytorch", "keras", "flax", "gaussian", "orthogonal", "identity", "chrono"]
Top = int | Literal["all"] | None
# What a network is to reach: a gain between the thresholds, or of 1.
Target = Literal["stable", "critical"]
# What a verdict may say.
Level = Literal["vanishing", "stable", "exploding", "undecided"]

# What holds where neither an option, nor a checkpoint, nor the inputs say otherwise.
CELL = "lstm"
INIT: Init = "pytorch"
HIDDEN, INPUT_SIZE, STEPS, BATCH = 64, 32, 200, 1
DTYPE: DType = "float64"
DTYPE_ON_TPU: DType = "float32"
READOUT_AT: ReadoutAt = "last"
# How matrices of CuDNNLSTM and CuDNNGRU may lie.
LAYOUTS: tuple[str, ...] = get_args(Layout)
# All singular values take minutes beyond this state size (T = 200, two cores), so many of them seconds.
MOST_FOR_ALL, DEFAULT_TOP = 1024, 8


_LOSS = "Loss, followed back beside the worst case"
_MASKS = "Masks that training draws"


@dataclass(frozen=True)
class Policy:
    """Where vanishing begins and exploding begins, as gains (sigma_1 of the product, no unit)."""

    vanishing_below: float = option(
        1e-3,
        "Verdict",
        "Gain (sigma_1 of the product) below which the verdict is vanishing.",
        metavar="GAIN",
        parse=float,
    )
    exploding_above: float = option(
        1e3,
        "Verdict",
        "Gain, at the last lag or on the way, above which it is exploding.",
        metavar="GAIN",
        parse=float,
    )

    def __post_init__(self) -> None:
        for threshold in fields(self):
            value = getattr(self, threshold.name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{as_option(threshold.name)} {value:g}: expected a positive, finite gain")
        if not self.vanishing_below < self.exploding_above:
            raise InputError(
                f"{as_option('vanishing_below')} {self.vanishing_below:g} is not below "
                f"{as_option('exploding_above')} {self.exploding_above:g}: swap or move the thresholds"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """What is asked of an analysis, as it was given: None is "not given", nothing is checked yet."""

    checkpoint: str | Path | Live | None = option(
        None,
        "Checkpoint",
        positional=True,
        reads=True,
        doc="A model's file (.pt, .safetensors, .keras, .h5, .msgpack, .onnx, .pb, .model, .npz), or what "
        "``from_torch``, ``from_keras``, ``from_flax`` or ``from_equinox`` return. Without it a cell is "
        "initialised.",
    )
    layer: str | Sequence[str] | None = option(
        None,
        "Checkpoint",
        "A layer of the checkpoint, or a module with all its layers: its name or the end of it "
        "(repeatable; default: all layers).",
        metavar="NAME",
        repeatable=True,
        doc="Names of layers of the checkpoint, or of modules for all in them, or their ends (default: all).",
    )
    reads: str | Sequence[str] | None = option(
        None,
        "Checkpoint",
        "LAYER reads what BELOW puts out, where the file does not say it (BELOW,BELOW: side by side; "
        "repeatable).",
        metavar="LAYER=BELOW",
        repeatable=True,
        doc='"LAYER=BELOW", or several: what a layer reads where the checkpoint does not say it; '
        '"LAYER=BELOW,BELOW" reads their outputs side by side.',
    )
    map: str | Path | Sequence[str] | Mapping[str, str] | None = option(
        None,
        "Checkpoint",
        "What arrays under other names are: LAYER.W_r,W_z,W_h=NAME[0:48].T (even parts of an array, slices, "
        "sums with +; repeatable, or ; between rules), or a file of such lines.",
        metavar="KEY=ARRAY|FILE",
        repeatable=True,
        reads=True,
        doc='What arrays under other names are, as "LAYER.W_r,W_z,W_h=NAME[0:48].T" (even parts of an array, '
        'slices, sums with +), "direction=backward"; rules, {key: array}, or a file of them.',
    )
    activation: Activation | None = option(
        None,
        "Checkpoint",
        "tanh, relu, sigmoid or linear, where the checkpoint does not say.",
        metavar="NAME",
    )
    layout: Layout | None = option(
        None,
        "Checkpoint",
        "How weights of a CuDNNLSTM or CuDNNGRU lie, where the checkpoint does not say.",
        choices=get_args(Layout),
    )
    config: str | Path | None = option(
        None,
        "Checkpoint",
        "The model's own to_json(), where the checkpoint is weights of Keras alone.",
        metavar="FILE",
        reads=True,
        doc="A file of the model's own ``to_json()``, where the checkpoint is weights of Keras alone.",
    )
    max_size: int | None = option(
        None,
        "Checkpoint",
        "Most that the file may unpack to, such as 2G (default: a small multiple of its size).",
        metavar="SIZE",
        parse=size_in_bytes,
        doc="Bytes that the file may unpack to (default: a small multiple of its size).",
    )

    cell: str | Cell | None = option(
        None,
        "Cell",
        f"A built-in cell (default {CELL}) or package.module:factory.",
        metavar="NAME",
        doc=f'A built-in name (default "{CELL}"), "package.module:factory", or a ``gradscope.Cell``.',
    )
    hidden: int | None = option(
        None,
        "Cell",
        f"Hidden size (default {HIDDEN}).",
        metavar="N",
        parse=int,
        doc=f"Units n (default {HIDDEN}).",
    )
    input_size: int | None = option(
        None,
        "Cell",
        f"Input size (default {INPUT_SIZE}).",
        metavar="D",
        parse=int,
        doc=f"Features d (default {INPUT_SIZE}, or those of the inputs).",
    )
    init: Init | None = option(
        None,
        "Cell",
        f"{INIT} (default), keras, flax, gaussian, orthogonal, identity or chrono.",
        metavar="NAME",
    )
    gain: float | None = option(
        None,
        "Cell",
        "Multiply every recurrent matrix by G (the gain that is measured is another).",
        metavar="G",
        parse=float,
        doc="Multiplies every recurrent matrix.",
    )
    biases: Mapping[str, float] | None = option(
        None,
        "Cell",
        metavar="B",
        parse=float,
        keys={
            "forget_bias": ("b_f", "Set b_f."),
            "input_bias": ("b_i", "Set b_i."),
            "output_bias": ("b_o", "Set b_o."),
            "update_bias": ("b_z", "Set b_z of a GRU."),
            "reset_bias": ("b_r", "Set b_r of a GRU."),
        },
        doc='``{"b_f": 1.0}`` sets every entry of a bias.',
    )
    seed: int = option(0, "Cell", "Seed of weights and inputs.", parse=int)

    inputs: Any = option(
        "normal",
        "Inputs",
        "normal, zeros, or a .npy, .npz, .safetensors or .csv file of shape (T, d) or (B, T, d); "
        "FILE.npz:NAME picks one of several arrays; a file of gradscope.record has those of every layer. An "
        "ONNX graph is run on them by onnxruntime, if that is installed and a layer reads something else.",
        metavar="KIND|FILE",
        reads=True,
        doc='"normal", "zeros", an array (T, d) or (B, T, d), or a file of one (.npy, .npz, .safetensors, '
        ".csv; FILE.npz:NAME is one of several). A model that is known to take (T, B, d) is given that. "
        "A file of ``gradscope.record`` has those of every layer. An ONNX graph is run on them by "
        "onnxruntime, if that is installed and a layer reads something else: of several inputs a dict, or a "
        "file of all.",
    )
    steps: int | None = option(
        None,
        "Inputs",
        f"Steps (default {STEPS}, or all that --inputs has).",
        metavar="T",
        parse=int,
        doc=f"Steps T (default {STEPS}, or all that the inputs have).",
    )
    batch: int | None = option(
        None,
        "Inputs",
        f"Independent input sequences (default {BATCH}), or so many of the first that --inputs has.",
        metavar="B",
        parse=int,
        doc=f"Independent input sequences B (default {BATCH}, or all of the inputs).",
    )
    input_scale: float | None = option(
        None,
        "Inputs",
        "Multiply the inputs by S: how strongly they drive the network.",
        metavar="S",
        parse=float,
        doc="Multiplies the inputs, of token ids what the embedding makes of them.",
    )
    time_major: bool = option(
        False,
        "Inputs",
        "--inputs has the time first: (T, B, d).",
        doc="The array of inputs is (T, B, d).",
    )
    embedding: str | None = option(
        None,
        "Inputs",
        "--inputs are token ids, (T,) or (B, T), for this embedding of the checkpoint.",
        metavar="NAME",
        doc="The checkpoint's embedding (name of the tensor or its module, or the end of it) that turns "
        "inputs of token ids, (T,) or (B, T), into (B, T, d).",
    )
    lengths: Any = option(
        None,
        "Inputs",
        "How many steps of each sequence there are, (B,): each is analysed over its own length.",
        metavar="FILE",
        reads=True,
        doc="(B,) or a file of them, how many steps of each sequence are analysed; the others are padding.",
    )
    initial_state: Any = option(
        None,
        "Inputs",
        "h0, and c0 of an LSTM, in a .npz or .safetensors: (n,) or (B, n); of L layers (L, B, n).",
        metavar="FILE",
        reads=True,
        doc='{"h0": ..., "c0": ...} or a file of them, (n,) or (B, n), of L layers (L, B, n): the state '
        "before the first step, for a backward layer that before the last. Without it that of the "
        "checkpoint, else zeros; an error where the model computes it, or is given it (ONNX, Keras).",
    )

    readout: str | None = option(
        None,
        _LOSS,
        "A Linear or Dense layer of the checkpoint: follow back the sum of what it puts out.",
        metavar="NAME",
        doc="A Linear or Dense layer of the checkpoint, for ``Analysis.loss``: the loss is the sum of what "
        "it puts out.",
    )
    readout_at: ReadoutAt | None = option(
        None,
        _LOSS,
        f"Whether it reads the {READOUT_AT} step (default) or every step.",
        choices=get_args(ReadoutAt),
    )
    adjoint: Any = option(
        None,
        _LOSS,
        "Follow back a loss by its derivatives dL/dh: (n,), (B, n) at the last step or (B, T, n).",
        metavar="FILE",
        reads=True,
        doc="In place of a readout the derivatives of a loss by the layer's outputs, a file or an array: "
        "(n,) or (B, n) at the last step, (T, n) or (B, T, n) at every one.",
    )

    clip: float | str | None = option(
        None,
        _LOSS,
        "What gradient clipping does to it: 5 or norm:5 and value:0.5 as PyTorch's, keras-clipnorm:1 (each "
        "variable), keras-global_clipnorm, keras-clipvalue, optax-clip_by_global_norm, optax-clip.",
        metavar="[LAW:]C",
        doc='What gradient clipping does to it: 5 or "norm:5" and "value:0.5" as PyTorch\'s clip_grad_norm_ '
        'and clip_grad_value_, "keras-clipnorm:1" (each variable), "keras-global_clipnorm:1", '
        '"keras-clipvalue:1", "optax-clip_by_global_norm:1", "optax-clip:1".',
    )
    tbptt: int | None = option(
        None,
        _LOSS,
        "What truncated backpropagation through time gives of it, every loss followed back K steps.",
        metavar="K",
        parse=int,
    )

    cut: str | Sequence[str] = option(
        (),
        "Measurement",
        "Drop a path, such as R_o (repeatable).",
        metavar="PATH",
        repeatable=True,
        doc="Paths dropped from the sum of Jacobians, such as R_o.",
    )
    scale: str | Sequence[str] | Mapping[str, float] = option(
        (),
        "Measurement",
        "Multiply what paths carry, states unchanged: R_*=0.75 is the mean of h-detach with probability 0.25 "
        "(repeatable).",
        metavar="PATH=FACTOR",
        repeatable=True,
        doc='Factors on the Jacobians of paths, as {"R_*": 0.75} or "R_*=0.75", the states being as they '
        "were: 1 - p on R_* is the mean of h-detach with probability p.",
    )
    h_detach: float | None = option(
        None,
        _MASKS,
        "Also the gain where h is detached before the gates with probability P (h-detach).",
        metavar="P",
        parse=float,
    )
    recurrent_dropout: float | None = option(
        None,
        _MASKS,
        "Also the gain with Keras' recurrent_dropout: each gate's own mask of h, the same at every step.",
        metavar="P",
        parse=float,
    )
    zoneout: float | str | Sequence[float] | None = option(
        None,
        _MASKS,
        "Also the gain where a unit keeps its old value with probability P (C,H: of cell state, of output).",
        metavar="P|C,H",
        doc="Also the gain where a unit keeps its old value with this probability, or two of them: of the "
        "cell state and of the output.",
    )
    masks: int = option(
        32,
        _MASKS,
        "How many masks are drawn for every sequence.",
        metavar="M",
        parse=int,
    )
    view: View = option(
        "state",
        "Measurement",
        "The chain of the whole state, or of an LSTM's cell state alone (dc_t/dc_(t-1)).",
        choices=get_args(View),
    )
    top: int | Literal["all"] | None = option(
        None,
        "Measurement",
        "Singular values to compute, without Jacobians "
        f"(default all; {DEFAULT_TOP} where the state is above {MOST_FOR_ALL}).",
        metavar="K|all",
        parse=number_or_word,
    )
    accuracy: Accuracy = option(
        "full",
        "Measurement",
        "Every singular value as right as float64 allows, or to about 1e-6, sooner if possible.",
        choices=get_args(Accuracy),
    )
    only: Only = option(
        "all",
        "Measurement",
        "Compute no more than the verdict, or also the gain by lag, or also the paths; a loss, gates and "
        "norms of the matrices only with all.",
        choices=get_args(Only),
        doc="Compute no more than the verdict, which is the same; or also the gain by lag; or also the "
        "paths' chains and shares. A loss, gates and norms of the matrices only with all.",
    )
    sensitivity: bool = option(
        False,
        "Measurement",
        "How the gain changes with every parameter, exactly: d log10 sigma_1 / d(parameter).",
        doc="Also ``Analysis.sensitivity``: d log10 sigma_1 / d(parameter) of the full chain, exactly.",
    )
    suggest: bool = option(
        False,
        "Measurement",
        "Also what to do about it: for each knob the setting that makes the gain stable, verified (gradscope "
        "suggest has other targets).",
        doc="Also ``Analysis.remedies``: for each knob the setting that makes the gain stable, verified; "
        "``gradscope.suggest`` has other targets.",
    )
    dtype: DType | None = option(
        None,
        "Measurement",
        f"Precision of states and Jacobians (default {DTYPE}; {DTYPE_ON_TPU} on TPU).",
        choices=get_args(DType),
    )

    platform: Platform | None = option(
        None,
        "Machine",
        "cpu, gpu or tpu (default: what JAX finds).",
        metavar="NAME",
        choices=get_args(Platform),
    )
    devices: int | None = option(
        None,
        "Machine",
        "Spread the batch over N GPUs or TPUs, or N cores of a CPU (default: all).",
        metavar="N",
        parse=int,
        doc="How many GPUs or TPUs, or cores of a CPU, the batch is spread over (default: all).",
    )
    distributed: bool = option(
        False,
        "Machine",
        "Share the batch with other processes of a cluster.",
        doc="Share the batch with the other processes of ``jax.distributed``, which has been initialised; "
        "each returns the whole analysis.",
    )

    vanishing_below: float = same_as(Policy, "vanishing_below")
    exploding_above: float = same_as(Policy, "exploding_above")
    progress: Callable[[float, int], None] | None = option(
        None,
        doc="Called with (sequences done, sequences in all), the first with a fraction; with a loss, which "
        "is followed back when all are done, twice over.",
    )
    plan: Callable[[str, float], None] | None = option(
        None,
        doc="Called before the work begins, of several layers or where it takes long, with a line on what "
        "will be measured and about how long that takes, and the seconds.",
    )

    trying: Callable[[str], None] | None = option(
        None, doc="Called with a line on every knob that is tried for suggestions, before it is tried."
    )

    @property
    def policy(self) -> Policy:
        """The thresholds; raises InputError where they cannot be meant."""
        return Policy(self.vanishing_below, self.exploding_above)

    @classmethod
    def without(cls) -> Mapping[str, str]:
        """{field that is not asked here: why, and what to do instead, as it follows the option's name}."""
        return {}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields that are asked here."""
        return tuple(one.name for one in fields(cls) if one.name not in cls.without())

    def check(self) -> None:
        """Raise InputError for what is given and not asked here."""
        for name in self._given(self.without()):
            raise InputError(f"{as_option(name)} {self.without()[name]}")

    def _given(self, names: Iterable[str]) -> list[str]:
        """Those of these options that say more than their default."""
        default = {one.name: one.default for one in fields(self)}
        given = {name: getattr(self, name) for name in names}
        nothing = {name for name, value in given.items() if isinstance(value, Mapping) and not value}
        return [name for name in given if name not in nothing and not is_default(given[name], default[name])]


# What is about an analysis alone.
_ANALYSIS_ONLY = (
    *("readout", "readout_at", "adjoint", "cut", "scale", "view", "top", "accuracy", "only", "sensitivity"),
    *("distributed", "plan", "clip", "tbptt", "suggest"),
)


# What is about a fresh cell, or changes the weights of a checkpoint.
_FRESH = ("hidden", "input_size", "init", "gain", "biases")


@dataclass(frozen=True, kw_only=True, eq=False)
class Suggesting(Settings):
    """What is asked of suggestions: of which network, and what it is to reach."""

    target: Target = option(
        "stable",
        "Target",
        "A gain between the thresholds, or (critical) a gain of 1.",
        choices=get_args(Target),
    )
    horizon: int | None = option(
        None,
        "Target",
        "In place of that, a gain above --vanishing-below at every lag up to N.",
        metavar="N",
        parse=int,
        doc="In place of a target, a gain above ``vanishing_below`` at every lag up to so many steps.",
    )
    knob: str | Sequence[str] = option(
        (),
        "Target",
        "Try this knob, such as b_f, R_z or R_* (repeatable; default: all that are worth it).",
        metavar="NAME",
        repeatable=True,
        doc="Names of the knobs to be tried, such as b_f, R_z or R_*.",
    )

    @classmethod
    def without(cls) -> Mapping[str, str]:
        """What is about an analysis alone."""
        why = "is about an analysis, suggestions are of the whole chain: leave it out"
        return dict.fromkeys(_ANALYSIS_ONLY, why)

    def check(self) -> None:
        """Raise InputError also for two targets."""
        super().check()
        if self.horizon is not None and self.target != "stable":
            raise InputError(f"{as_option('horizon')} and {as_option('target')} are two targets: give one")


@dataclass(frozen=True, kw_only=True, eq=False)
class Repairing(Suggesting):
    """What is asked of a repair: of which checkpoint, what is to be set, and where it is written."""

    knob: str | Sequence[str] = option(
        (),
        "Repair",
        "What is set, such as b_f+=2.3, b_f=3.35, R_z=x0.83, R_*<=1.02; a name alone is searched for the "
        "setting that reaches the target (repeatable).",
        metavar="KNOB",
        repeatable=True,
        doc='What is set: "b_f+=2.3" adds, "b_f=3.35" sets, "R_z=x0.83" scales, "R_*<=1.02" clips singular '
        'values; "layer1.R_z=x0.83" is of one layer; a name alone is searched for the setting that reaches '
        "the target.",
    )
    floss: int | None = option(
        None,
        "Repair",
        "Move weights until the K largest singular values of the chain are near 1 (needs optax).",
        metavar="K",
        parse=int,
    )
    output: str | Path | None = option(
        None,
        "Repair",
        "The new file: a .safetensors, or of a .npz a .npz.",
        flags=("-o", "--output"),
        metavar="FILE",
    )
    in_place: bool = option(False, "Repair", "Write the checkpoint itself again.")

    @classmethod
    def without(cls) -> Mapping[str, str]:
        """Also what is about a fresh cell."""
        why = "changes the weights before they are read: leave it out, or set a knob"
        return {**super().without(), **dict.fromkeys(_FRESH, why)}

    def check(self) -> None:
        """Raise InputError also where no file is to be written."""
        super().check()
        if self.checkpoint is None:
            raise InputError("repair writes a checkpoint again: give its file")
        if self.output is None and not self.in_place:
            raise InputError("where to write is not said: give -o FILE, or --in-place")
        if self.output is not None and self.in_place:
            raise InputError("-o FILE and --in-place are given: leave one of them out")


# What no row can tell, of a point of a grid or of a checkpoint, and where it is told.
NO_ROW = {
    "sensitivity": "is a number for every parameter, which no row holds: gradscope analyze tells it of one",
    "suggest": "is analyses of its own, which no row holds: gradscope suggest tells of one",
    "distributed": "shares one analysis between processes: leave it out, and deal the rows out by --shard",
    "plan": "is what one analysis says before it: leave it out",
}
# What asks for more than the gain: for the analysis of everything, or of the paths at least.
_LAWS = ("h_detach", "recurrent_dropout", "zoneout")
OF_TRAINING = ("readout", "readout_at", "adjoint", "clip", "tbptt", *_LAWS)
_OF_VALUES = ("view", "top", "accuracy")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweeping(Settings):
    """What is asked at every point of a grid, and the grid."""

    grid: Any = option(
        (),
        "Grid",
        "An option of the analysis and its values: gain=0.5:2:16 (from:to:count, :log by equal factors), "
        "steps=50,200, cell=lstm,gru, scale.R_z=0.5,1 (repeatable).",
        metavar="NAME=VALUES",
        repeatable=True,
        doc='The axes, as {"gain": [0.5, 1.0], "forget_bias": "-1:5:16"} or "gain=0.5:2:16", or several: an '
        "option of ``analyze`` (a bias as forget_bias, the factor of a path as scale.R_z) and its values.",
    )
    only: Only | None = option(  # type: ignore[assignment]  # the default depends on what else is asked
        None,
        "Measurement",
        "Gain and horizon alone, in milliseconds; or also shares of the paths; or all, with gates, a loss "
        "and masks (default: the first that tells what is asked).",
        choices=("gain", "paths", "all"),
        doc="The gain and the horizon alone; or also the shares of the paths; or all, with gates, a loss and "
        "masks. By default the first that tells what is asked.",
    )

    @classmethod
    def without(cls) -> Mapping[str, str]:
        """What no row can tell."""
        return NO_ROW

    def measured(self, axes: Sequence[str], limits: Only = "gain") -> Only:
        """How much is measured at a point, where these options are the axes; raises InputError for less.

        limits : how much the limits may want that every point is held to.
        """
        if "masks" in axes and not self._given(_LAWS) and not {*_LAWS} & {*axes}:
            raise InputError(f"masks are an axis, but there are none: give {as_option(_LAWS[0])}, say")
        training, values = (
            [*self._given(names), *(name for name in names if name in axes)]
            for names in (OF_TRAINING, _OF_VALUES)
        )
        least: Only = "all" if training else "paths" if values else "gain"
        order: tuple[Only, ...] = get_args(Only)
        if self.only is None:
            return max(least, limits, key=order.index)
        if order.index(self.only) < order.index(least):
            raise InputError(
                f"{as_option((training or values)[0])} is given, but {as_option('only')} {self.only} does "
                f"not measure what it changes: leave one of them out, or give {as_option('only')} {least}"
            )
        return self.only
