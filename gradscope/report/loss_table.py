"""What a loss sends back, as a table to be read: its norm by lag beside sigma_1, and the weight gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType

from gradscope.product_svd.log_scale import median_of_known
from gradscope.report.page import headed, note, section
from gradscope.report.sparkline import by_lag
from gradscope.report.terminal import Terminal
from gradscope.report.verdict import scientific

if TYPE_CHECKING:
    from gradscope.measure.loss import LossGradient
    from gradscope.report.chains import Chain


_TITLES = {
    "last": "Gradient of the loss at the last step by lag, beside the worst case",
    "every": "Gradient of the losses at every step by distance from the last, beside the worst case of one",
}


def loss_sections(loss: LossGradient, full: Chain, terminal: Terminal) -> Iterable[RenderableType]:
    """The sections of a loss; full : the chain whose sigma_1 is shown beside."""
    rows = {
        "|dL/ds|": (np.arange(1, full.steps + 1), median_of_known(loss.log10_norm)[1:]),
        "sigma_1": (full.lags, full.median_by_lag),
    }
    yield section(_TITLES[loss.at], by_lag(rows, full.steps, terminal))
    if loss.shares:
        yield section(
            "Weight gradients, and the lag by which half and 99 % of each has come together", _gradients(loss)
        )


def _gradients(loss: LossGradient) -> RenderableType:
    table = headed("matrix", "norm", "share", "half", "99 %")
    for names in loss.kinds.values():
        for name in names:
            share = loss.share(name)
            part = f"{100 * share:.1f} %" if math.isfinite(share) else "-"
            norm = loss.log10_gradients[name]
            size = "not measured" if math.isnan(norm) else scientific(norm)
            table.add_row(name, size, part, *_reach(loss, [name]))
    zero = "not measured" if loss.unmeasured else "exactly 0"
    notes = [_note(kind, zero, *_reach(loss, names)) for kind, names in loss.kinds.items()]
    return Group(table, *map(note, notes))


def _note(kind: str, zero: str, half: str, most: str) -> str:
    return f"dL/d{kind}: " + (zero if half == "-" else f"half of it by lag {half}, 99 % by lag {most}")


def _reach(loss: LossGradient, matrices: Sequence[str]) -> list[str]:
    """The lags by which half and nearly all of a gradient has come together."""
    lags = [loss.lag_within(rest, matrices) for rest in (0.5, 0.01)]
    return ["-" if lag is None else str(lag) for lag in lags]
