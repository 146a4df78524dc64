"""The adding problem's networks: the README's figures are theirs."""

import re
import sys

import numpy as np
import pytest
from oracles.program import EXAMPLES, ROOT, module_of, run

import gradscope

FOLDER = EXAMPLES / "adding_problem"
README = (FOLDER / "README.md").read_text("utf-8")


def shown(first):
    """The block of the README that begins with ``first``."""
    return re.search(rf"```text\n({first}.*?)```", README, re.DOTALL)[1]


def test_an_adding_problem_row_is_that_of_the_network():
    row = module_of(FOLDER, "analyse").row(FOLDER / "rnn_6000.safetensors", np.load(FOLDER / "sequences.npy"))
    assert row in shown(" +update").splitlines()


@pytest.mark.slow
def test_adding_problem_table_is_what_the_command_prints():
    assert run([sys.executable, FOLDER / "analyse.py"], ROOT) == shown(" +update")


def test_adding_problem_is_remembered_by_one_unit():
    """The figures of the README that stand outside its table."""
    analysis = gradscope.analyze(
        checkpoint=FOLDER / "lstm_6000.safetensors", inputs=np.load(FOLDER / "sequences.npy")
    )
    for name, quoted in {"full": (8.6, 4e-7), "carousel": (0.92, 6e-7)}.items():
        values = np.median([s.log10_singular_values[:2] for s in analysis.chain(name).spectra], axis=0)
        assert [float(f"{10**value:.1e}") for value in values] == pytest.approx(quoted, rel=0.2), name
