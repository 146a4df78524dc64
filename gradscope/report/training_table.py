"""What clipping and truncation make of a loss's gradient, as tables and sentences to be read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType

from gradscope.errors import counted
from gradscope.problem.clip import CLIP_LAWS
from gradscope.report.page import fitted, note, section
from gradscope.report.sparkline import by_lag
from gradscope.report.terminal import Terminal
from gradscope.report.verdict import scientific

if TYPE_CHECKING:
    from gradscope.custom_types import Array
    from gradscope.measure.clipping import Clipping
    from gradscope.measure.loss import LossGradient
    from gradscope.measure.truncation import Truncation
    from gradscope.report.chains import Chain
    from gradscope.report.masked import MaskedGains

_MEAN = {
    "h-detach": "the mean is that of the product of Jacobians (--scale R_*=1-p), which a few masks may "
    "carry: the typical chain is the median",
    "recurrent-dropout": "as in Keras each gate has its own mask of h, 1 / (1 - p) or 0, the same at every "
    "step, and its own states; with mean masks it is the network outside of training",
    "zoneout": "units keep their old value, drawn at every step; with mean masks it is the network outside "
    "of training",
}
_OF_LAYERS = (
    "every layer draws its own; what one reads of another within a step passes as it is, and of another "
    "direction as it is without masks"
)
_ONE_NUMBER = (
    "Clipping by norm multiplies every lag by one number: it bounds the step, and cannot cure vanishing."
)
_TURNED = (
    "Clipping of {over} turns the gradient, and still no lag gets more than it had: it cannot cure vanishing."
)
_OVER = {"variable": "each variable by itself", "entry": "single entries"}


def training_sections(loss: LossGradient, terminal: Terminal) -> Iterable[RenderableType]:
    """A section for each of the two that was asked for."""
    if loss.clip:
        title = f"Gradient clipping at {loss.clip.threshold:g} ({CLIP_LAWS[loss.clip.law].words})"
        yield section(title, _clipping(loss.clip, terminal))
    if loss.tbptt:
        title = f"Truncated BPTT, every loss followed back {counted(loss.tbptt.length, 'step')}"
        yield section(title, _truncation(loss.tbptt, terminal))


def masked_section(
    masks: MaskedGains, full: Chain, terminal: Terminal, *, several: bool = False
) -> RenderableType:
    """The gains with masks beside those without; several : whether of more layers than one."""
    chains = (full, masks.mean, masks.drawn)
    low, high = map(scientific, masks.log10_spread)
    columns = {
        "masks": ["none", "mean", f"{masks.count} drawn"],
        "gain": [scientific(chain.log10_norm.median) for chain in chains],
        "spread": ["", "", f"{low} to {high}"],
        "horizon": [f"{chain.horizon.median:g}" for chain in chains],
    }
    probability = ", ".join(f"{p:g}" for p in masks.probability)
    title = f"Gain with {masks.law.replace('recurrent-', 'recurrent ')} of probability {probability}"
    table = fitted(columns, terminal, folds="masks", dispensable=("spread",), styles={})
    said = [f"medians, spread from 5 to 95 %; {_MEAN[masks.law]}", *([_OF_LAYERS] if several else [])]
    return section(title, Group(table, *map(note, said)))


def _clipping(clip: Clipping, terminal: Terminal) -> RenderableType:
    over = CLIP_LAWS[clip.law].over
    rows = {"|G_k|": _lags(clip.log10_part), "clipped": _lags(clip.log10_clipped)}
    said = [
        _acts(clip),
        _ONE_NUMBER if over == "all" else _TURNED.format(over=_OVER[over]),
        f"A threshold of {clip.suggested:.3g} would leave nine tenths of these sequences as they are.",
        "|G_k|: what lag k contributes to dL/dR of the whole batch. The norm is over the weights analysed; a "
        "model's others (embedding, readout) count in its own.",
    ]
    return Group(by_lag(rows, len(clip.log10_part), terminal), *map(note, said))


def _acts(clip: Clipping) -> str:
    """On how many sequences it acts, and how."""
    count = len(clip.acts)
    if not clip.acts.any():
        whole = "the sequence" if count == 1 else f"any of the {count} sequences"
        return f"It does not act on {whole}: |G| is at most {scientific(float(clip.log10_norm.max()))}."
    where = "the sequence" if count == 1 else f"{100 * clip.proportion:.0f} % of the {count} sequences"
    factor = f"factor {_spread(clip.factor)}, cosine {_spread(clip.cosine)}"
    batch = f"; of their sum |G| is {scientific(clip.batch['log10_norm'])}, factor {clip.batch['factor']:.3g}"
    return f"It acts on {where}: {factor}{batch * (count > 1)}."


def _spread(values: Array) -> str:
    least, median, most = np.percentile(values, [0, 50, 100])
    lowest, highest = f"{least:.3g}", f"{most:.3g}"
    beside = f" ({lowest} to {highest})" if lowest != highest else ""
    return f"{median:.3g}{beside}"


def _lags(log10: Array) -> tuple[Array, Array]:
    return np.arange(1, len(log10) + 1), log10


def _truncation(found: Truncation, terminal: Terminal) -> RenderableType:
    groups = list(found.bias)
    columns = {
        "weights": groups,
        "bias": [_percent(found.at(group)[0]) for group in groups],
        "cosine": [_number(found.at(group)[1]) for group in groups],
        "1% needs": [str(found.needs(group) or "-") for group in groups],
        "chunked bias": [_percent(found.chunks[group][0]) for group in groups],
    }
    table = fitted(columns, terminal, folds="weights", dispensable=("chunked bias", "cosine"), styles={})
    said = [
        f"bias |G - G_K| / |G| over the {counted(found.steps, 'step')} at hand, exact; 1% needs so many "
        f"steps; chunked: states detached after every {counted(found.length, 'step')}, so that a loss "
        "reaches no further back",
        *_beyond(found),
    ]
    return Group(table, *map(note, said))


def _beyond(found: Truncation) -> Iterable[str]:
    """What longer sequences would add, of which only the fitted decay tells."""
    if found.length >= found.steps:
        have = f"the sequences have {counted(found.steps, 'step')}"
        yield f"nothing is truncated: {have}; more need longer ones (--steps)"
    if math.isnan(found.decay):
        return
    lost = f"lags after {max(found.length, found.steps)} would add {_percent(found.beyond)}"
    fitted = (
        f"beyond {counted(found.steps, 'step')} there is only a fit: |G_k| x {found.decay:.3g} with every lag"
    )
    if math.isinf(found.beyond):
        yield f"{fitted}, which does not decay: no length is enough there"
    elif (length := found.needs_beyond) is None:
        yield f"{fitted}, so that {lost}"
    else:
        yield f"{fitted}, so that {lost}; 1 % then needs {counted(length, 'step')}"


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %" if math.isfinite(part) else "-"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"
