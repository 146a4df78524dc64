"""What rows keep of training, and its columns: a loss's gradient, clipping, truncation; masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.report.numbers import json_number, log10_norm_error_of, log10_norm_of
from gradscope.report.verdict import level, scientific

if TYPE_CHECKING:
    from gradscope.measure.clipping import Clipping
    from gradscope.measure.loss import LossGradient
    from gradscope.measure.truncation import Truncation
    from gradscope.report.analysis import Analysis

Row = Mapping[str, Any]


def training_numbers(analysis: Analysis) -> dict[str, Any]:
    """The parts "loss" and "masks" of a row, by the names that they have in the JSON of an analysis.

    Medians over the sequences, logarithms of what is zero None; of two directions the gradients together.
    """
    losses = losses_of(analysis)
    return {
        **({"loss": _loss(losses)} if losses else {}),
        **({"masks": _masks(analysis)} if analysis.masks else {}),
    }


def losses_of(analysis: Analysis) -> list[LossGradient]:
    """The gradient of its loss, of two directions one of each; empty without a loss."""
    parts = (analysis,) if analysis.loss else analysis.layers
    return [part.loss for part in parts if part.loss]


def gradient_norm(losses: Sequence[LossGradient]) -> float:
    """log10 of the norm of a gradient by all parameters, of all its sequences and directions together."""
    return log10_norm_of([norm for one in losses for norm in one.log10_gradients.values()])


def gradient_norm_error(losses: Sequence[LossGradient]) -> float | None:
    """Its estimated error, in decades; None where that is not known."""
    names = [(one, name) for one in losses for name in one.log10_gradients]
    norms = [one.log10_gradients[name] for one, name in names]
    errors = [(one.log10_gradient_errors or {}).get(name) for one, name in names]
    return log10_norm_error_of(norms, errors)


def _loss(losses: list[LossGradient]) -> dict[str, Any]:
    found: dict[str, Any] = {"at": losses[0].at, "log10_gradient": json_number(gradient_norm(losses))}
    if len(losses) > 1:
        return found
    (loss,) = losses
    first = [row[~np.isnan(row)][-1] for row in loss.log10_norm]
    found["log10_norm"] = json_number(float(np.median(first)))
    if recurrent := loss.kinds.get("R"):
        found["reach"] = loss.lag_within(0.5, recurrent)
    return found | _clip(loss.clip) | _tbptt(loss.tbptt)


def _clip(clip: Clipping | None) -> dict[str, Any]:
    if clip is None:
        return {}
    told = {
        "law": clip.law,
        "threshold": clip.threshold,
        "clipped_proportion": clip.proportion,
        "factor": float(np.median(clip.factor)),
        "cosine": float(np.median(clip.cosine)),
        "log10_norm": json_number(float(np.median(clip.log10_norm))),
    }
    return {"clip": told}


def _tbptt(found: Truncation | None) -> dict[str, Any]:
    if found is None:
        return {}
    bias, cosine = found.at(found.main)
    told = {"length": found.length, "bias": json_number(bias), "cosine": json_number(cosine)}
    return {"tbptt": {**told, "length_for_1_percent": found.needs(found.main)}}


def _masks(analysis: Analysis) -> dict[str, Any]:
    masks = analysis.masks
    assert masks is not None
    return {
        "law": masks.law,
        "probability": list(masks.probability),
        "count": masks.count,
        "log10_norm": json_number(masks.drawn.log10_norm.median),
        "log10_spread": [json_number(end) for end in masks.log10_spread],
        "rate": json_number(masks.drawn.rate.median),
        "horizon": masks.drawn.horizon.median,
        "verdict": level(masks.drawn, analysis.policy),
        "mean": {
            "log10_norm": json_number(masks.mean.log10_norm.median),
            "horizon": masks.mean.horizon.median,
        },
    }


# -- as columns ---------------------------------------------------------------------------------------


# {column: (the part of the row, its name there, what people call it)}.
COLUMNS = {
    "log10_gradient": ("loss", "log10_gradient", "|dL/dp|"),
    "clip_factor": ("loss.clip", "factor", "clipped to"),
    "tbptt_bias": ("loss.tbptt", "bias", "bias"),
    "masked_log10_norm": ("masks", "log10_norm", "masked gain"),
    "masked_rate": ("masks", "rate", "masked rate"),
    "masked_horizon": ("masks", "horizon", "masked horizon"),
    "masked_verdict": ("masks", "verdict", "masked verdict"),
}


def part_of(row: Row, part: str) -> Row:
    """The part of a row at a path such as ``loss.clip``, for "" the row; empty where it has none."""
    for name in filter(None, part.split(".")):
        found = row.get(name)
        row = found if isinstance(found, Mapping) else {}
    return row


def training_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """{column: of each row its value, None where it has none}, of those that some row has."""
    parts = {name: [part_of(row, part) for row in rows] for name, (part, _, _) in COLUMNS.items()}
    return {name: [one.get(COLUMNS[name][1]) for one in each] for name, each in parts.items() if any(each)}


def columns_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that rows of analyses with these settings have."""
    given = {name for name, value in settings.items() if value is not None}
    loss = bool(given & {"readout", "adjoint"})
    asked = {
        "loss": loss,
        "loss.clip": loss and "clip" in given,
        "loss.tbptt": loss and "tbptt" in given,
        "masks": bool(given & {"h_detach", "recurrent_dropout", "zoneout"}),
    }
    return tuple(name for name, (part, _, _) in COLUMNS.items() if asked[part])


def value_of(row: Row, column: str) -> Any:
    """What a row has in a column, None where it has nothing."""
    part, name, _ = COLUMNS[column]
    return part_of(row, part).get(name)


def said_of_column(column: str) -> str:
    """What people call it."""
    return COLUMNS[column][2]


def said_in_column(column: str, value: Any) -> str:
    """What stands there for people."""
    if value is None or isinstance(value, str):
        return value or "-"
    if column.endswith(("gradient", "norm")):
        return scientific(value)
    return format(value, "+.4f" if column.endswith("rate") else ".4g")
