"""An Analysis as a table to be read: verdict, chains, who carries the gradient, norm by lag."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope.errors import shown
from gradscope.report.chains import WITHOUT
from gradscope.report.loss_table import loss_sections
from gradscope.report.next_steps import next_steps
from gradscope.report.page import (
    assumed,
    bullet,
    fitted,
    headed,
    magnitude,
    not_applied,
    note,
    page,
    prose,
    section,
)
from gradscope.report.remedies_table import remedy_sections
from gradscope.report.sensitivity_table import sensitivity_sections
from gradscope.report.sparkline import by_lag, crossings
from gradscope.report.subject import chosen, subject
from gradscope.report.terminal import Terminal
from gradscope.report.training_table import masked_section, training_sections
from gradscope.report.verdict import error_figures, scientific
from gradscope.report.views import Look

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis
    from gradscope.report.chains import Chain, Extremes

# Contrast of at least 4 on black and on white, which of the sixteen colours neither blue nor green has.
STYLES = {
    "vanishing": "bold color(63)",
    "stable": "bold color(28)",
    "exploding": "bold color(161)",
    "undecided": "bold color(130)",
}
# Characters of the longest bar, and of what else stands in its line beside the name.
_BAR_WIDTH, _BESIDE_BAR = 24, 22
# Decades: from here on an estimated error says that a value is not known.
_LOST = 0.5


def render_table(analysis: Analysis, look: Look) -> str:
    """The whole table as text, with ANSI codes if the terminal has colours."""
    parts = [headline_in_colour(analysis)] if look.verdict_only else _parts(analysis, look)
    return page(parts, look.terminal)


def _parts(analysis: Analysis, look: Look) -> Iterable[RenderableType]:
    """The whole, then what of its layers is to be shown."""
    yield prose(headline_in_colour(analysis))
    yield from map(bullet, (*analysis.verdict.reasons, *analysis.verdict.notes))
    yield from _said(analysis)
    if analysis.layers:
        yield section("Layers", _layers(analysis, look.terminal))
    yield from _measured(analysis, look.terminal)
    if not analysis.layers or analysis.only == "verdict":
        yield from _next(analysis)
        return
    worst = max(range(len(analysis.layers)), key=lambda number: _badness(analysis.layers[number]))
    for number in range(len(analysis.layers)) if look.every_layer else [worst]:
        yield Text(f"\nlayer{number}", style="bold underline")
        yield from _layer(analysis.layers[number], look.terminal, analysis.verdict.notes)
    if not look.every_layer:
        yield Text(f"\nlayer{worst} is the worst of the layers; --details shows all of each.", style="dim")
    yield from _next(analysis)


def _next(analysis: Analysis) -> Iterable[RenderableType]:
    """What to do about it."""
    sentences = next_steps(
        analysis.problem,
        analysis.verdict.level,
        analysis.policy.vanishing_below,
        [chain.name for chain in analysis.chains],
        analysis.full.rate.median,
        gates=analysis.gates,
        tried=bool(analysis.remedies),
        rms=analysis.full.log10_rms is not None,
    )
    if said := list(sentences):
        yield section("Next", Group(*map(bullet, said)))
    yield from remedy_sections(analysis.remedies, str(analysis.problem["source"]))


def _badness(layer: Analysis) -> tuple[int, float]:
    """What makes a layer worse than another: its level, then how far its gain is from 1."""
    order = ("stable", "undecided", "vanishing", "exploding")
    return order.index(layer.verdict.level), abs(layer.full.log10_norm.median)


def _layer(layer: Analysis, terminal: Terminal, told: Sequence[str]) -> Iterable[RenderableType]:
    """A layer of several, whose caveats the whole has said."""
    yield prose(headline_in_colour(layer, given=False))
    notes = [said for said in layer.verdict.notes if not any(one.endswith(said) for one in told)]
    yield from map(bullet, (*layer.verdict.reasons, *notes))
    yield from _measured(layer, terminal)


def _measured(analysis: Analysis, terminal: Terminal) -> Iterable[RenderableType]:
    """The sections of what was measured, below the verdict."""
    if analysis.only == "verdict":
        return
    yield section("Chains", _chains(analysis, terminal))
    if len(analysis.shares) > 1:
        yield section("Shares: who carries the gradient", _shares(analysis, terminal))
    if analysis.without:
        yield section(
            "Without: the whole chain but for one path, along the same states", _without(analysis, terminal)
        )
    yield section(
        "Gain by lag: how far back the gradient of the last step reaches (logarithmic)",
        _lags(analysis, terminal),
    )
    if analysis.loss:
        yield from loss_sections(analysis.loss, analysis.full, terminal)
        yield from training_sections(analysis.loss, terminal)
    if analysis.masks:
        several = len(analysis.layers) > 1
        yield masked_section(analysis.masks, analysis.full, terminal, several=several)
    if analysis.sensitivity:
        yield from sensitivity_sections(analysis.sensitivity)
    if analysis.matrices:
        yield section("Recurrent matrices", _matrices(analysis))
    if analysis.gates:
        yield section("Gates", _gates(analysis))


def _said(analysis: Analysis) -> Iterable[RenderableType]:
    """Who differentiated, and what the checkpoint leaves to be said beside the verdict."""
    by = dict.fromkeys(one.problem.get("jacobians", "own") for one in analysis.layers or (analysis,))
    for framework in by:
        if framework != "own":
            yield bullet(f"Jacobians by {framework}'s own derivatives, step by recorded step.")
    for name, words in (("not_applied", not_applied), ("assumed", assumed)):
        yield from (bullet(words(sentence)) for sentence in analysis.problem.get(name, ()))


def headline(analysis: Analysis) -> str:
    """The verdict in a line, without colours."""
    return str(headline_in_colour(analysis))


def headline_in_colour(analysis: Analysis, *, given: bool = True) -> Text:
    """The verdict in a line; given : with what the user chose or changed."""
    level = analysis.verdict.level
    problem = analysis.problem
    layers = len(analysis.layers) or int(problem.get("layers", 0))  # of which none was measured alone
    words = ", ".join([subject(problem, layers, analysis.full.size), *(chosen(problem) if given else ())])
    text = Text.assemble((level.upper(), STYLES[level]), ": ", words)
    text.append(f", gain {scientific(analysis.full.log10_norm.median)}")
    return text


def _chains(analysis: Analysis, terminal: Terminal) -> RenderableType:
    columns = table_of_chains(analysis)
    table = _fitted(columns, terminal, folds="chain")
    units = ", ".join(words for name, words in _UNITS.items() if name in columns)
    blocks = _BLOCKS if any("->" in chain.name for chain in analysis.chains) else ""
    return Group(table, *map(note, filter(None, [units, blocks, *map(_note, analysis.chains)])))


def _layers(analysis: Analysis, terminal: Terminal) -> RenderableType:
    return _fitted(table_of_layers(analysis), terminal, folds="layer")


def table_of_layers(analysis: Analysis) -> dict[str, list[str]]:
    """Heading and cells of every column of the layers' table."""
    layers, problems = analysis.layers, [layer.problem for layer in analysis.layers]
    return {
        "": [f"layer{number}" for number in range(len(layers))],
        "layer": [shown(problem["layer"]) for problem in problems],
        "cell": [problem["cell"] for problem in problems],
        "hidden": [str(problem["hidden"]) for problem in problems],
        "direction": [problem["direction"] for problem in problems],
        "gain": [scientific(layer.full.log10_norm.median) for layer in layers],
        "horizon": [f"{layer.full.horizon.median:g}" for layer in layers],
        "verdict": [layer.verdict.level for layer in layers],
    }


# What stands below the chains.
_UNITS = {
    "rate": "rate in nats per step",
    "horizon": "horizon in steps",
    "worst error": "worst error in decades of the worst singular value",
}
_BLOCKS = (
    "i->j: that block of the whole product, what the state of layer i at the start does to that of layer j "
    "at the end; what i does to j within a step is, alone and taken twice, zero"
)
# What a narrow terminal can do without, first to go first: a number is never cut.
_DISPENSABLE = (
    *("worst error", "zeros", "rms gain", "lowest", "highest", "rate"),
    *("direction", "hidden", "cell", "horizon"),
)


def _fitted(columns: dict[str, list[str]], terminal: Terminal, *, folds: str) -> RenderableType:
    return fitted(columns, terminal, folds=folds, dispensable=_DISPENSABLE, styles=STYLES)


def table_of_chains(analysis: Analysis) -> dict[str, list[str]]:
    """Heading and cells of every column of the chains' table."""
    chains = analysis.chains
    columns = {
        "chain": [chain.name for chain in chains],
        "gain": [scientific(chain.log10_norm.median) for chain in chains],
    }
    if len(chains[0].spectra) > 1:
        columns["lowest"] = [scientific(chain.log10_norm.min) for chain in chains]
        columns["highest"] = [scientific(chain.log10_norm.max) for chain in chains]
    else:
        rms = [chain.log10_rms for chain in chains]
        columns["rms gain"] = ["-" if one is None else scientific(one.median) for one in rms]
    return columns | {
        "rate": [_rate(chain.rate) for chain in chains],
        "horizon": [f"{chain.horizon.median:g}" for chain in chains],
        "zeros": [f"{np.median(chain.exact_zeros):g}" if chain.exact_zeros else "-" for chain in chains],
        "worst error": [_error(chain) for chain in chains],
        "verdict": [analysis.levels[chain.name] for chain in chains],
    }


def _note(chain: Chain) -> str:
    """The lag from which a gain is zero; what is not measured; or that small values mean nothing."""
    if chain.log10_norm.median == -math.inf:
        zero = "exactly 0" if chain.exact_zeros else "0"
        if len(set(chain.lengths)) > 1:
            return f"{chain.name}: {zero} over a sequence's own length"
        return f"{chain.name}: {zero} from lag {chain.lags[np.argmin(np.median(chain.by_lag, axis=0))]} on"
    if chain.unmeasured is not None:
        return f"{chain.name}: {chain.unmeasured}"
    if max(s.log10_error for s in chain.spectra) > _LOST:
        return f"{chain.name}: the smallest singular values are lost in rounding, gain and rate are not"
    return ""


def _rate(rate: Extremes) -> str:
    return f"{rate.median:+.4f}" if math.isfinite(rate.median) else "-"


def _error(chain: Chain) -> str:
    """Estimated error of the worst of the log10 singular values, in decades."""
    error = max(s.log10_error for s in chain.spectra)
    return "lost" if error > _LOST else error_figures(error)


def _shares(analysis: Analysis, terminal: Terminal) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    width = min(_BAR_WIDTH, terminal.width - max(map(len, analysis.mean_shares)) - _BESIDE_BAR)
    for name, share in sorted(analysis.mean_shares.items(), key=lambda item: -abs(item[1])):
        said = f"{100 * share:z.1f} %" if math.isfinite(share) else "-"
        table.add_row(name, said, _bar(share, max(1, width), terminal))
    return table


def _without(analysis: Analysis, terminal: Terminal) -> RenderableType:
    columns = {
        "without": list(analysis.without),
        "gain": [scientific(chain.log10_norm.median) for chain in analysis.without.values()],
        "horizon": [f"{chain.horizon.median:g}" for chain in analysis.without.values()],
        "verdict": [analysis.levels[WITHOUT + name] for name in analysis.without],
    }
    return _fitted(columns, terminal, folds="without")


def _bar(share: float, width: int, terminal: Terminal) -> str:
    if not math.isfinite(share):
        return ""
    cells = min(round(abs(share) * width), width)
    return ("█" if terminal.unicode else "#") * cells + (" against" if share < -0.005 else "")


def _lags(analysis: Analysis, terminal: Terminal) -> RenderableType:
    full, policy = analysis.full, analysis.policy
    norms = full.median_by_lag
    thresholds = (policy.vanishing_below, policy.exploding_above)
    return by_lag({"": (full.lags, norms)}, full.steps, terminal, crossings(full.lags, norms, *thresholds))


def _matrices(analysis: Analysis) -> Table:
    table = headed("matrix", "spectral norm", "spectral radius", "smallest singular value")
    for name, matrix in analysis.matrices.items():
        table.add_row(
            name,
            magnitude(matrix["spectral_norm"]),
            magnitude(matrix["spectral_radius"]),
            f"{matrix['singular_values'][-1]:.2e}",
        )
    return table


def _gates(analysis: Analysis) -> Table:
    table = headed("gate", "mean", "saturated")
    for name, gate in analysis.gates.items():
        table.add_row(name, f"{gate['mean']:.3f}", f"{100 * gate['saturated']:.1f} %")
    return table
