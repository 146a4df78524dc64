"""Checks and comparisons made by hand of made-up analyses, for every format; with names that are hostile."""

from pathlib import Path

from gradscope.errors import InputError
from gradscope.gate.baseline import entry_of
from gradscope.gate.budgets import MetricBudget
from gradscope.gate.checks import Checking, Checks, places_of
from gradscope.gate.compare import Allowed, changes_between
from gradscope.gate.config import PlannedRun
from gradscope.gate.places import BudgetPlace
from gradscope.rows.journal import TRACK
from gradscope.track.rows import row_of, row_of_error
from gradscope.track.tracked import Track
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
    run = Checking(analyze, len(plan), baseline)
    return Checks(tuple(map(run, plan)), places_of(plan))


def comparison(name="small"):
    """Changes of every kind between two stacks."""
    old = {name: entry_of([analysis(LSTM)]), "other": entry_of([analysis(LSTM)])}
    moved = {"full": -0.2, "carousel": -0.5, "R_z": None, "R_f": -1.0, "R_new": -2.0}
    new = {name: entry_of([analysis(moved, steps=41, dtype="float32")]), "other": old["other"]}
    return changes_between(
        old, new, ("old.json", f"{name}.json"), [Allowed("log10_norm", 0.5), Allowed("horizon", 3.0)]
    )


def track(name="small"):
    """Rows of a whole analysis, of one beyond its limits, of a dead one, and of one that was not read."""
    limits = (
        MetricBudget("log10_norm", max=-9.0),
        MetricBudget("horizon.carousel", min=100, severity="warn"),
        MetricBudget("share.R_z", max=0.1, severity="off"),
        MetricBudget("horizon.R_q", min=1),
    )
    places = {one.metric: BudgetPlace(Path("gradscope.toml"), ("analyses", "small", "budgets", one.metric))
              for one in limits}  # fmt: skip
    flows = [analysis({**LSTM, "full": full}, batch=2) for full in (-0.25, -0.2, None)]
    told = [row_of(one, limits, light=False, places=places) for one in flows]
    told.append(row_of_error(InputError("no such | file")))
    names = [f"runs/step_{number}.pt" for number in (10, 20, 30)] + [f"runs/{name}.pt"]
    about = [
        {"schema": TRACK, "gradscope": "1", "checkpoint": one, "index": number, "of": 4, "key": f"k{number}"}
        for number, one in enumerate(names)
    ]
    return Track(tuple(one | row for one, row in zip(about, told, strict=True)), fail_on=("exploding",))
