"""Checks and comparisons made by hand of made-up analyses, for every format; with names that are hostile."""

from pathlib import Path

from gradscope.errors import InputError
from gradscope.gate.baseline import entry_of
from gradscope.gate.budgets import MetricBudget
from gradscope.gate.checks import run_checks
from gradscope.gate.compare import Allowed, changes_between
from gradscope.gate.config import PlannedRun
from gradscope.gate.places import BudgetPlace
from oracles.made_up import LSTM, analysis

# Quotes, pipes, newlines, brackets, control characters, a command of GitHub's; what Markdown and HTML take.
HOSTILE = "a\"'|b`\n::error::[x](y)<b>\x1b[31m\x00,;%&\ud800]]>é"

BUDGETS = (
    MetricBudget("log10_norm", max=-9.0),
    MetricBudget("log10_norm.R_z", min=-3.0),
    MetricBudget("horizon.carousel", min=100, severity="warn"),
    MetricBudget("rate", min=-1.0, max=-0.54, aggregation="pessimistic"),
    MetricBudget("share.R_z", max=0.1, severity="off"),
    MetricBudget("change.log10_norm", max=0.5),
    MetricBudget("horizon.R_q", min=1),
)


def checks(name="small", folder=Path()):
    """Every outcome that there is."""
    places = {
        one.metric: BudgetPlace(folder / "gradscope.toml", ("analyses", name, "budgets", one.metric))
        for one in BUDGETS
    }
    plan = [
        PlannedRun(name, {}, (0, 1), BUDGETS, places),
        PlannedRun("gone", {"cell": "x"}, (0,), (MetricBudget("rate", max=1),), {}),
        PlannedRun("idle", {}, (0,), (), {}),
    ]

    def analyze(seed, cell=None, **_):
        if cell:
            raise InputError("no such | file")
        return analysis({**LSTM, "full": -0.25 + 0.01 * seed}, batch=2, seed=seed)

    baseline = {name: entry_of([analysis({**LSTM, "full": -0.2}, batch=2, dtype="float32")])}
    return run_checks(plan, analyze, baseline=baseline)


def comparison(name="small"):
    """Changes of every kind between two stacks."""
    old = {name: entry_of([analysis(LSTM)]), "other": entry_of([analysis(LSTM)])}
    moved = {"full": -0.2, "carousel": -0.5, "R_z": None, "R_f": -1.0, "R_new": -2.0}
    new = {name: entry_of([analysis(moved, steps=41, dtype="float32")]), "other": old["other"]}
    return changes_between(
        old, new, ("old.json", f"{name}.json"), [Allowed("log10_norm", 0.5), Allowed("horizon", 3.0)]
    )
