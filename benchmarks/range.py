"""Inputs from 1 to 1e6, weights from 1e-3 to 1e3, every cell: does any analysis end without gain and lags?

    python benchmarks/range.py [--cells lstm,gru-relu] [--steps 50,500] [--hidden 6] [--only all]
                               [--forms alone,backward,stack,loss] [--checked 50] [--seed 0] [--done FILE]

A row for each form, cell and T: how many analyses there were; in how many the gain at every lag that was
looked at is that of python-flint, and in how many it is not (0 is asked for); in how many the gain is zero;
how many ended without the gain or a lag of the full chain, or of the loss (0 is asked for); how many were
refused and why; how many values all of them have, how many of these are zero and how many lost; and the
seconds of the slowest. The oracle: complex steps of the papers' equations, in balls of 500 bits beside
integers, at the states of the trajectory and what they have beyond float64's digits, over the last steps,
which are the lags 1 to ``--checked``; there is none where states leave float64, and for cells that
tests/oracles has no equations of.
--only : what is measured, "gain" is the full chain's gain and lags alone; --forms : a layer alone, one that
reads its inputs from their end, two of them one upon the other, and a loss of its last outputs (all that is
measured); --seed : of the weights and inputs; --done : a file to note what is done; what is there is not run
again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import jax
import numpy as np

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE), str(HERE / "tests")]

from oracles.any_exponent import KNOWN, log10_norms, stacked, step_of

import gradscope
from gradscope.cells import CELLS, find
from gradscope.cells.cell import Member
from gradscope.cells.stack import stacked as stacked_cell
from gradscope.linearize.jacobians import linearize
from gradscope.linearize.system import System
from gradscope.settings import Only

INPUTS = (1.0, 30.0, 300.0, 1e4, 1e6)
WEIGHTS = (1e-3, 0.3, 1.0, 30.0, 1e3)
FEATURES = 4
STATES = jax.jit(linearize, static_argnums=0)
FORMS = ("alone", "backward", "stack", "loss")
# Decades, beside ten times the estimated error: what rounding leaves of a logarithm, relative.
ROUNDED = 1e-13


@dataclass(frozen=True)
class Case:
    """One network of the sweep, and what is asked of it."""

    form: str
    cell: str
    steps: int
    weights: float
    inputs: float
    hidden: int
    checked: int = 50
    seed: int = 0

    @property
    def key(self) -> dict[str, Any]:
        """What it is known by."""
        names = ("form", "cell", "steps", "weights", "inputs", "hidden", "seed")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def layers(self) -> list[dict[str, np.ndarray]]:
        """Parameters of each layer."""
        rng = np.random.default_rng([1, self.seed])
        sizes = [FEATURES, self.hidden] if self.form == "stack" else [FEATURES]
        each = [find(self.cell).shapes(self.hidden, size) for size in sizes]
        return [
            {key: self.weights * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes.items()}
            for shapes in each
        ]

    @cached_property
    def sequence(self) -> np.ndarray:
        """(1, T, d)."""
        return self.inputs * np.random.default_rng([2, self.seed]).normal(size=(1, self.steps, FEATURES))

    def analysis(self, only: Only) -> gradscope.Analysis:
        """What gradscope makes of a file of it."""
        arrays = {f"l{k}.{key}": a for k, layer in enumerate(self.layers) for key, a in layer.items()}
        more: dict[str, Any] = {"adjoint": np.ones(self.hidden)} if self.form == "loss" else {"only": only}
        rules = [f"{name}={name}" for name in arrays]
        if self.form == "backward":
            rules.append("l0.direction=backward")
        if self.form == "stack":
            more["reads"] = "l1=l0"
        with TemporaryDirectory() as folder:
            np.savez(Path(folder, "cell.npz"), **arrays)
            given = {"checkpoint": Path(folder, "cell.npz"), "map": rules, "inputs": self.sequence}
            return gradscope.analyze(cell=self.cell, **given, **more)

    def expected(self) -> np.ndarray | None:
        """log10 of the gain at the lags that are looked at; None where there is no oracle."""
        if self.cell not in KNOWN:
            return None
        cell, step, parameters = find(self.cell), step_of(self.cell), self.layers[0]
        if self.form == "stack":
            sizes = (FEATURES, self.hidden)
            reads: tuple[tuple[int | tuple[int, int], ...], ...] = (((0, FEATURES),), (0,))
            members = [Member(cell, self.hidden, sizes[k], k, reads[k]) for k in range(2)]
            cell, step = stacked_cell(tuple(members)), stacked([step, step], self.hidden)
            parameters = {f"layer{k}.{key}": a for k, one in enumerate(self.layers) for key, a in one.items()}
        inputs = self.sequence[:, ::-1] if self.form == "backward" else self.sequence
        start = np.zeros((1, cell.size(self.hidden)))
        # By the program that the analysis has them from: in chaos those of another one go another way.
        with System(cell, self.hidden, parameters, inputs, start).running():
            states = np.asarray(STATES(cell, parameters, inputs[0], start[0])["states"])
        if not np.isfinite(states).all():
            return None
        return log10_norms(step, parameters, inputs[0], states, self.checked)

    def run(self, only: Only) -> dict[str, Any]:
        """One analysis: its seconds, what became of its values, whether it is right, and what it lacks."""
        start = time.perf_counter()
        try:
            analysis = self.analysis(only)
        except gradscope.InputError as error:
            return self.key | {"error": str(error)}
        seconds = time.perf_counter() - start
        (spectrum,) = analysis.full.spectra
        counts = {
            "values": len(spectrum.log10_singular_values),
            "zeros": spectrum.exact_zeros or 0,
            "lost": spectrum.lost,
            "right": right(self.expected(), analysis),
            "seconds": seconds,
        }
        zero = bool(np.isneginf(spectrum.log10_singular_values[0]))
        return self.key | counts | told(analysis.to_json(all_lags=True), self.steps, zero)


def right(expected: np.ndarray | None, analysis: gradscope.Analysis) -> bool | None:
    """Whether the lags that are looked at are those of the oracle; None where there is none.

    A lag that is told without an estimate has the larger one of the next that have one; one that is lost is
    not told, and none is looked at of which the oracle knows nothing.
    """
    if expected is None:
        return None
    ours, spectrum = analysis.full.by_lag[0, : len(expected)], analysis.full.spectra[0]
    error = np.full(len(ours), spectrum.log10_norm_error)
    if spectrum.log10_norm_error_by_lag is not None and len(spectrum.log10_norm_error_by_lag):
        known = np.flatnonzero(~np.isnan(spectrum.log10_norm_error_by_lag))
        at = np.arange(len(ours))
        sides = [
            np.clip(np.searchsorted(known, at, side) - back, 0, len(known) - 1)
            for side, back in (("left", 0), ("right", 1))
        ]
        error = np.max([spectrum.log10_norm_error_by_lag[known[side]] for side in sides], axis=0)
    told = ~np.isnan(ours) & ~np.isnan(expected)
    ours, expected, error = ours[told], expected[told], error[told]
    zero = np.isneginf(expected) | np.isneginf(ours)
    close = np.abs(np.where(zero, 0, ours) - np.where(zero, 0, expected)) <= 10 * error + ROUNDED * (
        1 + np.abs(np.where(zero, 0, expected))
    )
    return bool((np.where(zero, ours == expected, close)).all())


def told(text: str, steps: int, zero: bool) -> dict[str, Any]:
    """What a user reads: strict JSON, its gain (None is zero), verdict, and whether any of it is missing."""
    answer = json.loads(text, parse_constant=_refused)
    (full,) = (chain for chain in answer["chains"] if chain["name"] == "full")
    gain = full["log10_norm"]["median"]
    lacks = [
        gain is None and not zero,
        full["rate"]["median"] is None and not zero,
        full["horizon"]["median"] is None,
        full["by_lag"]["lag"] != list(range(1, steps + 1)) or len(full["by_lag"]["log10_norm"]) != steps,
        "loss" in answer and not zero and None in answer["loss"]["profile"]["log10_norm"][0],
    ]
    return {"gain": gain, "nothing": zero, "level": answer["verdict"]["level"], "missing": any(lacks)}


def _refused(name: str) -> None:
    raise ValueError(f"{name} is not of JSON")


def sweep(cases: Sequence[Case], only: Only, done: Path | None) -> Iterator[dict[str, Any]]:
    """All of them; a refusal is an answer too."""
    known = [json.loads(line) for line in done.read_text().splitlines()] if done and done.exists() else []
    for case in cases:
        row = next((row for row in known if case.key.items() <= row.items()), None)
        if row is None:
            row = case.run(only)
            if done:
                with done.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        yield row


def main() -> None:
    """Run the sweep and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--steps", default="50,500")
    parser.add_argument("--hidden", type=int, default=6)
    parser.add_argument("--only", default="all", choices=get_args(Only))
    parser.add_argument("--forms", default="alone")
    parser.add_argument(
        "--checked",
        type=int,
        default=50,
        help="lags that are compared: the oracle takes longer than the analysis",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--done", type=Path)
    given = parser.parse_args()
    lists = (given.forms.split(","), given.cells.split(","), map(int, given.steps.split(",")))
    product = itertools.product(*lists, WEIGHTS, INPUTS)
    cases = [Case(*values, given.hidden, given.checked, given.seed) for values in product]
    rows = sweep(cases, given.only, given.done)
    print(
        "| form | cell | T | analyses | right | wrong | zero | ended early | refused | values | zeros | lost "
        "| slowest, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    kinds = itertools.groupby(rows, lambda row: (row["form"], row["cell"], row["steps"]))
    for (form, cell, steps), group in kinds:
        found = list(group)
        told = [row for row in found if "error" not in row]
        judged = [sum(row["right"] is verdict for row in told) for verdict in (True, False)]
        sums = [sum(row[name] for row in told) for name in ("nothing", "missing", "values", "zeros", "lost")]
        slowest = max((row["seconds"] for row in told), default=0.0)
        refused = [row for row in found if "error" in row]
        print(
            f"| {form} | {cell} | {steps} | {len(found)} | {judged[0]} | {judged[1]} | {sums[0]} | {sums[1]} "
            f"| {len(refused)} | {sums[2]} | {sums[3]} | {sums[4]} | {slowest:.1f} |",
            flush=True,
        )
        for row in told:
            if row["right"] is False:
                print(
                    f"  wrong: weights {row['weights']:g}, inputs {row['inputs']:g}: log10 gain {row['gain']}"
                )
        for row in refused:
            print(f"  weights {row['weights']:g}, inputs {row['inputs']:g}: {row['error']}")


if __name__ == "__main__":
    main()
