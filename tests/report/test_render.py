"""Tables and JSON against golden files: a new case is a new entry and a new file.

UPDATE_GOLDEN=1 pytest tests/report/test_render.py writes them anew; read the difference before committing.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from oracles.made_up import LSTM, STEPS, analysis

from gradscope.measure.loss import LossGradient
from gradscope.measure.sensitivity import Sensitivity
from gradscope.report.json import render_json
from gradscope.report.sparkline import axis_below
from gradscope.report.table import render_table
from gradscope.report.terminal import Terminal
from gradscope.report.verdict import scientific
from gradscope.report.views import Look
from gradscope.schemas import schema

GOLDEN = Path(__file__).parents[1] / "golden"


def loss(at):
    """A made-up LossGradient: a decade a lag lost, lag 1 half of all, lag 2 a quarter ..."""
    norms = -np.arange(STEPS + 1.0)[None]
    shares = np.append(0.5 ** np.arange(1, STEPS), 0.5 ** (STEPS - 1))
    return LossGradient(
        at=at,
        log10_norm=norms,
        deltas={"dz": np.zeros((1, STEPS, 4))},
        log10_deltas={"dz": norms[:, 1:] - 1, "df": np.full((1, STEPS), -np.inf)},
        log10_gradients={"R_z": -0.25, "R_f": -0.5, "W_z": -np.inf, "b_z": 0.0},
        shares={"R_z": 0.75 * shares, "R_f": 0.25 * shares, "W_z": np.full(STEPS, np.nan)},
    )


def sensitivity(**fields):
    """A made-up Sensitivity of three parameters of two gates."""
    total = {"R_f": np.full((2, 2), 0.5), "b_f": np.array([1.0, -0.25]), "R_z": np.zeros((2, 2))}
    elasticity = {"R_f": 12.5, "b_f": -3.0, "R_z": 0.0}
    given = {"sequence": 0, "values": 1, "largest_adjoint": 2.5, "window": 4, "error": 1e-14}
    given |= {"condition": 3.25, "condition_step": 7}
    return Sensitivity(total, total, elasticity, elasticity, **(given | fields))


CASES = {
    "vanishing_80": (analysis(LSTM), Terminal(80)),
    "vanishing_120": (analysis(LSTM), Terminal(120)),
    "vanishing_ascii": (analysis(LSTM), Terminal(80, unicode=False)),
    "vanishing_colour": (analysis(LSTM), Terminal(80, color=True)),
    "batch_80": (analysis(LSTM, batch=3, cut=["R_o"], view="cell"), Terminal(80)),
    "exploding_80": (analysis({"full": 0.5, "carousel": -0.5, "R_z": 0.4}), Terminal(80)),
    "without_80": (
        analysis({"full": 0.5, "carousel": -0.5, "R_z": -0.4}, without={"carousel": -0.4, "R_z": -0.05}),
        Terminal(80),
    ),
    "chain_80": (analysis({"full": 0.0}, cell=None, source="jacobians.npy"), Terminal(80)),
    "dead_80": (analysis({"full": None}, cell=None, source="dead.npy"), Terminal(80)),
    "lost_80": (analysis({"full": np.nan}, cell=None, source="lost.npy"), Terminal(80)),
    "narrow_50": (analysis(LSTM), Terminal(50)),
    "loss_80": (dataclasses.replace(analysis(LSTM), loss=loss("last")), Terminal(80)),
    "sensitivity_80": (
        dataclasses.replace(
            analysis(LSTM),
            sensitivity=sensitivity(
                windowed={"R_f": np.full((2, 2), np.nan)},
                windowed_elasticity={"R_f": np.nan},
                errors={"total": {"R_f": {"norm": 1e-9, "elasticity": 2e-9, "shift": 3e-9}}},
                unmeasured="that by R_f, of which rounding may leave nothing",
                loss=sensitivity(largest_adjoint=np.inf),
            ),
        ),
        Terminal(80),
    ),
    "loss_50": (dataclasses.replace(analysis(LSTM), loss=loss("every")), Terminal(50)),
}


def check(name, text):
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("name", CASES)
def test_table(name):
    subject, terminal = CASES[name]
    text = render_table(subject, Look(terminal))
    check(f"{name}.txt", text)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= terminal.width
    assert plain.isascii() or terminal.unicode
    assert not re.search(r" $", plain, re.MULTILINE)


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [40, 41, 53, 80, 130, 200])
@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("_80")])
def test_a_table_fits_and_cuts_no_number(name, width, unicode):
    subject = CASES[name][0]
    text = render_table(subject, Look(Terminal(width, False, unicode)))
    assert max(map(len, text.splitlines())) <= width
    assert unicode or text.isascii()
    words = f" {' '.join(text.split())} "
    for chain in subject.chains:
        assert f" {scientific(chain.log10_norm.median)} " in words
        assert f" {chain.name} " in words
    assert "…" not in text


@pytest.mark.parametrize(("name", "subject"), [("0", "layer 0: lstm, "), ("", "lstm, ")])
def test_the_headline_names_the_layer(name, subject):
    text = render_table(analysis(LSTM, layer=name), Look(Terminal(80), verdict_only=True))
    assert text == f"VANISHING: {subject}hidden 4, 40 steps, gain 1.00e-10\n"


@pytest.mark.parametrize(("steps", "width"), [(200, 62), (100, 35), (1000, 100), (40, 40), (7, 4), (1, 1)])
def test_ticks_of_lags_are_round_and_where_their_numbers_are(steps, width):
    shown = 1 + np.linspace(0, steps - 1, width).round()
    line, numbers = axis_below(shown, [])
    ticks = [int(text) for text in numbers.split()]
    assert ticks[0] == 1
    assert ticks[-1] == steps
    unit = 10 ** max(int(np.log10(steps) - 0.7), 0)
    assert all(tick % unit == 0 for tick in ticks[1:-1])
    assert len(ticks) == line.count("┴")
    for found in re.finditer(r"\d+", numbers):
        column = int(np.abs(shown - int(found.group())).argmin())
        assert line[column] == "┴"
        assert found.start() - 1 <= column <= found.end()


def test_verdict_alone():
    subject, terminal = CASES["exploding_80"]
    alone = render_table(subject, Look(terminal, verdict_only=True))
    assert alone == render_table(subject, Look(terminal)).splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    "name",
    ["vanishing_80", "batch_80", "chain_80", "dead_80", "lost_80", "loss_80", "without_80", "sensitivity_80"],
)
def test_json(name):
    text = render_json(CASES[name][0], Look(Terminal()))
    jsonschema.validate(json.loads(text), schema())
    check(f"{name}.json", json.dumps(json.loads(text), indent=1) + "\n")


def test_names_with_brackets_are_not_markup():
    subject = CASES["chain_80"][0]
    odd = dataclasses.replace(subject, problem={**subject.problem, "source": "[bold]x[/bold] [0].npy"})
    assert "[bold]x[/bold] [0].npy" in render_table(odd, Look(Terminal(80)))


@pytest.mark.parametrize("width", [40, 60, 120])
def test_layers_on_a_narrow_terminal_have_whole_numbers(width):
    def layer(name):
        return analysis(LSTM, layer=name, direction="backward")

    several = dataclasses.replace(analysis(LSTM), layers=(layer("l0_reverse"), layer("x" * 70)))
    rows = (
        render_table(several, Look(Terminal(width)))
        .split("\nLayers\n")[1]
        .split("\nChains\n")[0]
        .splitlines()
    )
    for number in range(2):
        (row,) = (row for row in rows if row.startswith(f" layer{number} "))
        assert row.endswith("vanishing")
        assert "1.00e-10" in row
    assert "".join(rows).count("x") == 70
    assert max(map(len, rows)) <= width
    assert ("direction" in rows[0]) == (width == 120)


def test_a_long_path_is_not_cut_on_a_narrow_terminal():
    text = render_table(analysis({"full": -0.25, "x" * 70: -0.5}), Look(Terminal(40)))
    rows = text.split("\nChains\n")[1].split("\nGain by lag")[0]
    assert rows.count("x") == 70
    assert rows.count("vanishing") == 2
    assert "1.00e-20" in rows
