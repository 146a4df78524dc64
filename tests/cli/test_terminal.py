"""What every command shows, at three widths, in colour and without Unicode: golden files that were looked at.

UPDATE_GOLDEN=1 pytest tests/cli/test_terminal.py writes them anew; look at the difference, on a dark and on a
light terminal, before committing.
"""

import fcntl
import os
import re
import struct
import sys
import termios
from pathlib import Path

import click
import numpy as np
import pytest
from oracles.gated import checks, comparison, track
from oracles.made_up import LSTM, analysis

from gradscope.advise.repair import Repaired
from gradscope.advise.suggest import Suggestions
from gradscope.cli.main import cli
from gradscope.cli.streams import between_words
from gradscope.gate.checks_table import OUTCOMES
from gradscope.report.inspection import inspect
from gradscope.report.remedies import Remedies, Suggestion
from gradscope.report.table import STYLES
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look, render

GOLDEN = Path(__file__).parents[1] / "golden" / "terminal"
CODE = re.compile(r"\x1b\[([0-9;]*)m")
MODES = {
    "40 columns": Terminal(40),
    "80 columns": Terminal(80),
    "120 columns": Terminal(120),
    "80 columns, colour": Terminal(80, color=True),
    "80 columns, no Unicode": Terminal(80, unicode=False),
}


def suggestions():
    setting = {"knob": "b_f", "value": 2.25, "was": 0.0, "words": "b_f = 2.25", "setting": "b_f=2.25"}
    found = {"verified_log10": -1.2, "horizon": 40, "verdict": "stable", "evaluations": 5, "monotone": True}
    first = {"predicted_log10": -2.1, "predicted_horizon": 31}
    reaching = Suggestion(reaches=True, **setting, **found, **first, shares={"carousel": (0.75, 0.98)})
    lost = {"verified_log10": -9.0, "horizon": 6, "verdict": "vanishing", "evaluations": 7, "monotone": False}
    none = dict.fromkeys(("predicted_log10", "predicted_horizon"))
    other = Suggestion("scale R_*", 2.5, 1.0, "R_* times 2.5", "R_*=2.5", False, **none, **lost)
    advice = ("Chrono initialisation: biases that are spread over the lags (Tallec and Ollivier 2018).",)
    was = analysis(LSTM)
    now = was.full.log10_norm.median
    remedies = Remedies("a gain from 0.001 to 1000", False, now, 12.0, (reaching, other), advice)
    return Suggestions(was, (remedies,))


def repaired():
    after = analysis({**LSTM, "full": -0.03})
    return Repaired("model.pt", "repaired.pt", ("b_f=2.25",), ("rnn.bias_ih_l0",), analysis(LSTM), after)


def inspection():
    rng = np.random.default_rng(0)
    np.savez("m.npz", **{f"{kind}_{gate}": rng.normal(size=shape) for gate in "zifo" for kind, shape in
                         (("W", (3, 2)), ("R", (3, 3)), ("b", (3,)))})  # fmt: skip
    return inspect("m.npz")


MADE = {
    "analyze": lambda: analysis(LSTM, batch=2),
    "exploding": lambda: analysis({"full": 0.2, "R_z": 0.1, "R_f": -1.0}, without={"R_z": -0.2, "R_f": 0.1}),
    "check": checks,
    "compare": comparison,
    "inspect": inspection,
    "repair": repaired,
    "suggest": suggestions,
    "track": track,
}


def golden(name, text):
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("name", MADE)
def test_what_is_seen(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = MADE[name]()
    seen = {mode: render(made, "table", Look(terminal)) for mode, terminal in MODES.items()}
    golden(name, "".join(f"-- {mode}\n{text}\n" for mode, text in seen.items()))
    for mode, terminal in MODES.items():
        plain = CODE.sub("", seen[mode])
        assert max(map(len, plain.splitlines())) <= terminal.width
        assert terminal.color or plain == seen[mode]
        assert terminal.unicode or plain.isascii()
        assert all(line == line.rstrip() for line in plain.splitlines())
    coloured = seen["80 columns, colour"]
    assert CODE.sub("", coloured) == seen["80 columns"]
    # No colour but those of which test_contrast knows that they are legible on black and on white.
    known = {re.search(r"\d+", style)[0] for style in (*STYLES.values(), *OUTCOMES.values()) if "(" in style}
    used = {code for found in CODE.findall(coloured) for code in found.split(";38;5;")[1:]}
    assert used <= known
    assert {found for found in CODE.findall(coloured) if "38" not in found} <= {"0", "1", "2", "1;4"}


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("asked", [["config", "chain"], ["completion", "-h"]])
def test_what_has_no_colours(run, tmp_path, monkeypatch, asked, width):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, _ = run(*asked)
    assert (code, "\x1b" in out, out.isascii()) == (0, False, True)
    golden(f"{'_'.join(asked)}_{width}", out)


@pytest.mark.parametrize("name", [None, *cli.list_commands(click.Context(cli))])
def test_help_cuts_no_word_where_it_is_narrow(run, monkeypatch, name):
    asked = [*([name] if name else []), "--help"]
    seen = {}
    for width in (40, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        seen[width] = re.sub(r"-\n +", "-", run(*asked)[1])  # a hyphen is where a word may end
    words = {word for word in seen[100].split() if len(word) <= 24}
    assert words <= {*seen[40].split()}


def test_lines_on_stderr_are_broken_between_words_on_a_terminal_alone(monkeypatch):
    path = "file:///a-rather-long-folder/and/the-name-of-a-file.html"
    line = f"gradscope: error: no-such-file.pt: No such file, expected --one-of these; see {path}"
    assert between_words(line) == line
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        broken = between_words(line).splitlines()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        assert between_words(line) == line, "it does not know its size"
        monkeypatch.undo()
    os.close(ours)
    assert " ".join(one.strip() for one in broken) == line
    assert [one.strip() for one in broken if len(one) > 40] == [path]
