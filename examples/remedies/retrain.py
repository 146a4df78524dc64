"""Retrain the networks of ../adding_problem and ../sunspots with a remedy and without: what it was worth.

Needs what gradscope itself does not: ``pip install torch safetensors``. At its initialisation each
network gets the setting of one knob (forget bias, scale of the recurrent matrix) with which the gradient over
all steps keeps some gain, found by analysing the changed network on its own inputs; then all are trained
alike, from the same weights, on the same data.

    python examples/remedies/retrain.py            # five seeds: ten minutes on one core
    python examples/remedies/retrain.py --seeds 1
"""

import argparse
import copy
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

import gradscope

HERE = Path(__file__).parent
# An answer that is right to a tenth: mean squared error, where always to answer 1 costs 0.16.
LEARNT = 0.01
UPDATES, EVERY = 2500, 50


def script(folder: str) -> ModuleType:
    """The ``train.py`` of another example."""
    spec = importlib.util.spec_from_file_location(folder, HERE.parent / folder / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ADDING, SUNSPOTS = script("adding_problem"), script("sunspots")


def gain(layer: torch.nn.Module, inputs: torch.Tensor) -> tuple[float, float]:
    """Gain over all steps, and how many steps back it stays at or above 1e-3, medians of the sequences."""
    checkpoint = gradscope.from_torch(torch.nn.ModuleDict({"layer": layer}))
    cell = "lstm" if isinstance(layer, torch.nn.LSTM) else "rnn"
    analysis = gradscope.analyze(checkpoint=checkpoint, cell=cell, inputs=inputs.numpy(), only="gain")
    return 10**analysis.full.log10_norm.median, analysis.full.horizon.median


def forget_bias(layer: torch.nn.LSTM, shift: float) -> None:
    """Add to the bias of every forget gate."""
    with torch.no_grad():
        layer.bias_ih_l0[layer.hidden_size : 2 * layer.hidden_size] += shift


def recurrent_scale(layer: torch.nn.RNN, log_scale: float) -> None:
    """Multiply the recurrent matrix."""
    with torch.no_grad():
        layer.weight_hh_l0 *= np.exp(log_scale)


def remedied(layer: torch.nn.Module, knob: Callable, most: float, inputs: torch.Tensor, least: float) -> str:
    """The setting of the knob, to a tenth, at which the gain over all steps is ``least``, turned on.

    The first half that reaches it, then the tenths before: the gain need not grow with the setting.
    """

    def reaches(setting: float) -> bool:
        tried = copy.deepcopy(layer)
        knob(tried, setting)
        return gain(tried, inputs)[0] >= least

    halves = (half for half in np.arange(0.0, most, 0.5) if reaches(half))
    if (half := next(halves, None)) is None:
        return "none"
    setting = next(half - 0.1 * k for k in (4, 3, 2, 1, 0) if half - 0.1 * k >= 0 and reaches(half - 0.1 * k))
    knob(layer, setting)
    return f"{setting:.1f}"


def adding(kind: str, knob: Callable, most: float, seed: int, least: float) -> tuple[str, ...]:
    """Train on the adding problem: the setting, the horizon, when it is learnt, and the last loss."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    model, test = ADDING.Adder(kind), [part[:1000] for part in ADDING.unseen()]
    some = test[0][:4]
    setting = remedied(model.layer, knob, most, some, least) if least else "-"
    _, before = gain(model.layer, some)
    optimizer = torch.optim.Adam(model.parameters(), lr=ADDING.RATE[kind])
    for update in range(UPDATES + 1):
        if update % EVERY == 0:
            with torch.no_grad():
                loss = ADDING.loss(model, *test).item()
            if loss < LEARNT:
                break
        optimizer.zero_grad()
        ADDING.loss(model, *ADDING.draw(ADDING.BATCH, generator)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    learnt = str(update) if loss < LEARNT else "never"
    return setting, f"{before:.0f}", learnt, f"{loss:.4f}"


def forecasting(seed: int, least: float) -> tuple[str, ...]:
    """Train on the sunspots: the setting, the horizon, and the error on the years after those of training."""
    torch.manual_seed(seed)
    x = torch.tensor(np.load(HERE.parent / "sunspots" / "sunspots.npy"))[None]
    training = SUNSPOTS.LAST_TRAINING_YEAR - 1700 + 1
    model = SUNSPOTS.Forecaster()
    setting = remedied(model.lstm, forget_bias, 8.0, x, least) if least else "-"
    _, before = gain(model.lstm, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=1e-4)
    for _ in range(SUNSPOTS.EPOCHS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x[:, : training - 1]), x[:, 1:training]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return setting, f"{before:.0f}", "-", f"{SUNSPOTS.held_out(model, x, training):.4f}"


TASKS = {
    "adding, lstm": (partial(adding, "lstm", forget_bias, 8.0), (0, 1e-3, 0.5)),
    "adding, rnn": (partial(adding, "rnn", recurrent_scale, 2.0), (0, 1e-3)),
    "sunspots, lstm": (forecasting, (0, 1e-3)),
}


def main() -> None:
    """A line for every task, seed, and gain that the remedy is to reach, or none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("task            seed  gain to reach  setting  horizon  learnt at    loss")
    for task in asked.tasks:
        run, gains = TASKS[task]
        for seed in range(asked.seeds):
            for least in gains:
                setting, before, learnt, loss = run(seed, least)
                row = f"{task:14s}  {seed:4d}  {least or 'no remedy':>13}  {setting:>7s}  {before:>7s}"
                print(f"{row}  {learnt:>9s}  {loss:>6s}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
