"""An Analysis as numbers for other programs: a flat dict for loggers, rows for a data frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from gradscope.errors import InputError
from gradscope.settings import Level

if TYPE_CHECKING:
    import pandas as pd

    from gradscope.report.analysis import Analysis
    from gradscope.report.chains import Chain, Extremes


def scalars(analysis: Analysis) -> dict[str, float]:
    """{name: number}, medians of the batch; what is not known, or no finite number, is left out."""
    found = [pair for name, part in analysis.parts for pair in _of(part, f"layer/{name}/" if name else "")]
    return {name: float(value) for name, value in found if math.isfinite(value)}


def _of(analysis: Analysis, prefix: str) -> Iterator[tuple[str, float]]:
    for level in get_args(Level):
        yield f"{prefix}verdict/{level}", float(analysis.verdict.level == level)
    for chain in analysis.chains:
        of_chain = prefix if chain is analysis.full else f"{prefix}path/{chain.name}/"
        for name, value in _quantities(chain).items():
            if value is not None:
                yield f"{of_chain}{name}", value.median
        yield f"{of_chain}log10_norm_error", chain.log10_norm_error
    for name, share in analysis.mean_shares.items():
        yield f"{prefix}path/{name}/share", share
    for name, gate in analysis.gates.items():
        yield f"{prefix}gate/{name}/mean", gate["mean"]
        yield f"{prefix}gate/{name}/saturated", gate["saturated"]


def _quantities(chain: Chain) -> dict[str, Extremes | None]:
    """Of a chain, by their names in JSON."""
    return {
        "log10_norm": chain.log10_norm,
        "log10_rms": chain.log10_rms,
        "rate": chain.rate,
        "horizon": chain.horizon,
        "log10_largest_gain": chain.log10_largest_gain,
    }


def to_dataframe(analysis: Analysis) -> pd.DataFrame:
    """A row for every chain and sequence, of the whole (layer "") and of each layer; needs pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise InputError("to_dataframe needs pandas, which is not installed: pip install pandas") from error
    return pd.DataFrame(rows(analysis))


def rows(analysis: Analysis) -> list[dict[str, Any]]:
    """{column: value} for every chain and sequence, of the whole (layer "") and of each layer."""
    return [row for name, part in analysis.parts for row in _rows(name or "", part)]


def _rows(layer: str, analysis: Analysis) -> Iterator[dict[str, Any]]:
    shares = analysis.mean_shares
    for chain in analysis.chains:
        for number, spectrum in enumerate(chain.spectra):
            log10_norm = float(spectrum.log10_singular_values[0])
            yield {
                "layer": layer,
                "chain": chain.name,
                "sequence": number,
                "steps": chain.lengths[number],
                "log10_norm": log10_norm,
                "log10_norm_error": float(spectrum.log10_norm_error),
                "rate": log10_norm * math.log(10) / chain.lengths[number],
                "horizon": chain.horizons[number],
                "exact_zeros": spectrum.exact_zeros,
                "log10_error": float(spectrum.log10_error),
                "verdict": analysis.levels[chain.name],
                "share": shares.get(chain.name),
            }


def json_number(value: Any) -> Any:
    """A number that JSON knows, else None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def log10_norm_of(parts: Sequence[float]) -> float:
    """log10 of the norm of what has parts of these norms, as log10 too, however small or large."""
    largest = max(parts, default=-math.inf)
    if not math.isfinite(largest):
        return largest
    return largest + 0.5 * math.log10(sum(100.0 ** (one - largest) for one in parts))


def log10_norm_error_of(parts: Sequence[float], errors: Sequence[float | None]) -> float | None:
    """The error of that, of parts that are off by so many decades; None where one is not known."""
    whole, known = log10_norm_of(parts), [error for error in errors if error is not None]
    if len(known) < len(parts) or not math.isfinite(whole):
        return None
    off = [10.0 ** (one - whole) * (1 - 10.0**-error) for one, error in zip(parts, known, strict=True)]
    relative = math.hypot(*off)
    return -math.log10(1 - relative) if relative < 1 else None
