"""The same line without the shell: ``gradscope.analyze``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.checkpoints import Live, Model, read
from gradscope.custom_types import Array
from gradscope.errors import InputError, quoted
from gradscope.machine import find_devices, one_blas_thread
from gradscope.measure.batch import Means, measure_batch
from gradscope.measure.loss import loss_gradient
from gradscope.measure.measured import Measured
from gradscope.measure.progress import Progress
from gradscope.problem.layers import Problems, make_problems
from gradscope.product_svd.spectrum import spectrum
from gradscope.report.analysis import Analysis
from gradscope.report.chains import chain_of
from gradscope.report.conclude import conclude
from gradscope.report.verdict import Policy, judge, level

if TYPE_CHECKING:
    from jax import Device

    from gradscope.cells.cell import Cell


def analyze(
    *,
    checkpoint: str | Path | Live | None = None,
    layer: str | Sequence[str] | None = None,
    activation: str | None = None,
    max_size: int | None = None,
    cell: str | Cell | None = None,
    hidden: int | None = None,
    input_size: int | None = None,
    steps: int | None = None,
    init: str | None = None,
    gain: float | None = None,
    biases: Mapping[str, float] | None = None,
    seed: int = 0,
    batch: int | None = None,
    inputs: Any = "normal",
    readout: str | None = None,
    readout_at: str | None = None,
    adjoint: Any = None,
    time_major: bool = False,
    embedding: str | None = None,
    lengths: Any = None,
    initial_state: Any = None,
    cut: str | Sequence[str] = (),
    view: str = "state",
    dtype: str | None = None,
    accuracy: str = "full",
    top: int | str | None = None,
    platform: str | None = None,
    devices: int | None = None,
    distributed: bool = False,
    vanishing_below: float = 1e-3,
    exploding_above: float = 1e3,
    progress: Progress | None = None,
) -> Analysis:
    """How the gradient flows through a recurrent cell or a trained layer.

    checkpoint : a model's file (.pt, .safetensors, .keras, .h5, .msgpack, .onnx, .npz), or what
        ``from_torch``, ``from_keras``, ``from_flax`` or ``from_equinox`` return; without it a cell is
        initialised (``cell`` "lstm", ``hidden`` 64, ``input_size`` 32, ``init`` "pytorch").
    layer : names of layers of the checkpoint, or of modules for all in them, or their ends; by default all;
        activation : "tanh", "relu", "sigmoid" or "linear" where the file does not say; max_size : bytes it
        may unpack to.
    cell : a built-in name, "package.module:factory", or a gradscope.Cell.
    steps : T, 200 by default, or the length of the inputs.
    gain : multiplies every recurrent matrix; biases : {"b_f": 1.0} sets a bias.
    inputs : "normal", "zeros", an array (T, d) or (B, T, d), or a file of one (.npy, .npz, .safetensors,
        .csv; FILE.npz:NAME is one of several); time_major : the array is (T, B, d); batch : B.
    embedding : the checkpoint's embedding (name of the tensor or its module, or the end of it) that turns
        inputs of token ids, (T,) or (B, T), into (B, T, d).
    lengths : (B,) or a file of them, how many steps of each sequence are analysed; the others are padding.
    initial_state : {"h0": ..., "c0": ...} or a file of them, (n,) or (B, n): the state before the first step,
        for a backward layer that before the last. Without it that of the checkpoint, else zeros; an error
        where the model computes it, or is given it (ONNX, Keras).
    readout : a Linear or Dense layer of the checkpoint, for ``Analysis.loss``: the loss is the sum of what
        it puts out at the ``readout_at`` "last" (default) step or at "every" one. adjoint, in its place :
        the derivatives of a loss by the layer's outputs, a file or an array, (n,) or (B, n) at the last
        step, (T, n) or (B, T, n) at every one.
    cut : paths dropped from the sum of Jacobians; view : "state", or "cell" for dc_t/dc_(t-1).
    top : how many singular values to compute, without any Jacobian, or "all" (default, up to a state
        size of 1024; beyond it 8).
    dtype : "float64" (default; "float32" on TPU); platform : "cpu", "gpu" or "tpu".
    accuracy : "full", or "fast" for singular values to about 1e-6.
    devices : how many of them the batch is spread over, all by default; cores, where it is a CPU.
    distributed : share the batch with the other processes of ``jax.distributed``, which has been
        initialised; each returns the whole analysis.
    vanishing_below, exploding_above : thresholds on the gain sigma_1.
    progress : called with (sequences done, sequences in all), the first with a fraction; with a loss, which
        is followed back when all are done, twice over.

    Raises gradscope.InputError with one line that says what was given and what is expected.
    """
    policy = Policy(vanishing_below, exploding_above)
    floor = math.log10(policy.vanishing_below)

    def prepare() -> tuple[Problems, Means]:
        found = find_devices(platform, devices)
        choice = {"layer": layer, "activation": activation, "max_size": max_size}
        beside = {"readout": readout, "embedding": embedding}
        model = _read(checkpoint, cell, choice, beside)
        problems = make_problems(
            model,
            found,
            cell=cell,
            hidden=hidden,
            input_size=input_size,
            steps=steps,
            init=init,
            gain=gain,
            biases=biases,
            seed=seed,
            batch=batch,
            inputs=inputs,
            time_major=time_major,
            embedding=model.arrays[embedding] if model and embedding else None,
            lengths=lengths,
            initial_state=initial_state,
            cut=cut,
            view=view,
            top=top,
            dtype=dtype or ("float32" if found[0].platform == "tpu" else "float64"),
            accuracy=accuracy,
        )
        head = model.arrays[readout] if model and readout else None
        return problems.with_loss(head, readout_at, adjoint), Means(found, devices)

    if not distributed:
        problems, means = prepare()
        return analyze_problems(problems, policy, progress, means)
    from gradscope.measure.cluster import measure_shared

    problems, means, measured = measure_shared(prepare, floor, progress)
    return _concluded(problems, policy, measured, means.devices[0], progress)


def analyze_problems(
    problems: Problems,
    policy: Policy | None = None,
    progress: Progress | None = None,
    means: Means | None = None,
) -> Analysis:
    """The straight line from problems to their analysis, by default on all devices of this process."""
    policy, means = policy or Policy(), means or Means(find_devices())
    floor = math.log10(policy.vanishing_below)
    measured = measure_batch(problems, range(problems.batch), floor, means, progress)
    return _concluded(problems, policy, measured, means.devices[0], progress)


def _concluded(
    problems: Problems,
    policy: Policy,
    measured: Sequence[Sequence[Measured]],
    device: Device,
    progress: Progress | None,
) -> Analysis:
    """The analysis of what was measured; losses are followed back on ``device``."""
    losses = [loss_gradient(problem, device, progress) for problem in problems.every]
    return conclude(problems, policy, measured, losses, device.platform)


def _read(
    path: str | Path | Live | None,
    cell: str | Cell | None,
    choice: Mapping[str, Any],
    beside: Mapping[str, str | None],
) -> Model | None:
    """The layers of a checkpoint, if one is given, and what else of it is asked for."""
    if path is not None:
        layer, rest = choice["layer"], {name: value for name, value in choice.items() if name != "layer"}
        also = [name for name in beside.values() if name is not None]
        return read(path, cell, layers=(layer,) if isinstance(layer, str) else layer, also=also, **rest)
    for name, value in (*choice.items(), *beside.items()):
        if value is not None:
            raise InputError(
                f"{name} is {quoted(value)}, but that is about a checkpoint: give its file as well"
            )
    return None


@one_blas_thread()
def analyze_chain(
    stack: Array, source: str, policy: Policy | None = None, top: int | None = None
) -> Analysis:
    """The same for a bare stack of Jacobians (T, m, m), which has no paths; top : how many values."""
    policy = policy or Policy()
    floor = -math.inf if top is None else math.log10(policy.vanishing_below)
    chain = chain_of("full", [spectrum(stack, top, by_lag=True, floor=floor)], policy.vanishing_below)
    return Analysis(
        problem={"cell": None, "size": stack.shape[1], "steps": len(stack), "batch": 1, "source": source},
        policy=policy,
        verdict=judge([chain], {}, policy, trajectory=False),
        chains=(chain,),
        levels={"full": level(chain, policy)},
    )
