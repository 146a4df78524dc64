"""The line of a budget, however it is spelled."""

import tomllib

import pytest

from gradscope.gate.places import BudgetPlace, line_of

KEYS = ("analyses", "small", "budgets", "log10_norm")
BUDGET = "log10_norm = {max = 3}\n"
SMALL = f"[analyses.small.budgets]\n{BUDGET}"
SPELLED = {
    "inline": (f"[analyses.small]\ncell = 'gru'\n[analyses.small.budgets]\n# mine\n{BUDGET}rate = {{}}\n", 5),
    "own table": ("[analyses.small]\n\n[analyses.small.budgets.log10_norm]\nmax = 3\n", 3),
    "dotted": ("[analyses.small]\ncell = 'gru'\nbudgets.rate.max = 1\nbudgets.log10_norm.max = 3\n", 4),
    "all in one": ("[analyses]\nother = {}\nsmall = {budgets = {log10_norm = {max = 3}}}\n", 3),
    "another's": (
        f"[analyses.big.budgets]\n{BUDGET}[analyses.small.budgets]\n'log10_norm' = {{max = 3}}\n",
        4,
    ),
    "in a text": (f'note = """\n{SMALL}"""\n{SMALL}', 6),
    "several lines": (f"w = [\n1,\n]\n{SMALL}".replace("3", "[\n1,\n2]") + "y = [\n1]\n", 5),
    "carriage returns": (f"\n{SMALL}".replace("\n", "\r\n"), 3),
    "odd characters": (f"# \u2028 \u0085\n[analyses.small.budgets] # \u2028\n{BUDGET}", 3),
}


@pytest.mark.parametrize("name", SPELLED)
def test_line(name):
    text, line = SPELLED[name]
    tomllib.loads(text)
    assert line_of(text, KEYS) == line
    padded = "".join(f"[t{number}]\nx = [\n1,\n]\n" for number in range(30))
    assert line_of(f"{text}\n{padded}", KEYS) == line
    assert line_of(padded + text, KEYS) == line + 120


def test_what_is_not_there(tmp_path):
    assert line_of("[analyses.small.budgets]\n", KEYS) is None
    assert line_of("", KEYS) is None
    assert BudgetPlace(tmp_path / "gone.toml", KEYS).line is None
    (tmp_path / "damaged.toml").write_text("[analyses")
    assert BudgetPlace(tmp_path / "damaged.toml", KEYS).line is None
