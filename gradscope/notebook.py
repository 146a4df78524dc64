"""A spectrum as notebooks show it: a table of its values, with their error, and their picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradscope.product_svd.spectrum import Spectrum

# Values shown of more: so many from each end.
_EACH_END = 6


def spectrum_html(spectrum: Spectrum) -> str:
    """Numbers alone, so there is nothing to escape; the picture is that of an analysis."""
    values = spectrum.log10_singular_values.tolist()
    shown: list[int | None] = [*range(len(values))]
    if len(values) > 2 * _EACH_END:
        shown = [*range(_EACH_END), None, *range(len(values) - _EACH_END, len(values))]
    rows = "".join(
        "<tr><td>&hellip;</td><td></td><td></td></tr>"
        if k is None
        else f"<tr><td>{k + 1}</td><td>{_size(values[k])}</td><td>{_digits(values[k])}</td></tr>"
        for k in shown
    )
    said = _said(len(values), spectrum.exact_zeros, spectrum.log10_error)
    head = "<tr><th>i</th><th>sigma_i</th><th>log10</th></tr>"
    table = f"<table><caption>{said}</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return table + _drawn(spectrum)


def _said(count: int, zeros: int | None, error: float) -> str:
    """How many they are and how well they are known, of which those that are zero have nothing to say."""
    if zeros == count:
        return f"{count} singular values, all exactly zero"
    of_zero = "" if zeros is None else f", {zeros or 'none'} exactly zero"
    return f"{count} singular values{of_zero}, each log10 to {error:.0e} or better"


def _drawn(spectrum: Spectrum) -> str:
    """Nothing where no value is above zero."""
    from gradscope.report.pictures.spectrum import draw_spectrum
    from gradscope.report.pictures.theme import size_of

    values = [value if math.isfinite(value) else None for value in spectrum.log10_singular_values.tolist()]
    if not any(value is not None for value in values):
        return ""
    chain = {
        "name": "product",
        "size": len(spectrum.left),
        "log10_singular_values": [values],
        "log10_error": [spectrum.log10_error],
        "exact_zeros": [spectrum.exact_zeros or 0],
    }
    told = {
        "chains": [chain],
        "shares": {},
        "verdict": {"level": "singular values of a product", "reasons": []},
    }
    return draw_spectrum(told, size_of("page")).svg(f"gradscope-{id(spectrum)}")


def _size(log10: float) -> str:
    """Mantissa and exponent, which float64 need not hold: ``2.45e-380``."""
    if not math.isfinite(log10):
        return "0" if log10 == -math.inf else "not known"
    whole = math.floor(log10)
    mantissa = f"{10 ** (log10 - whole):.2f}"
    return f"1.00e{whole + 1:+03d}" if mantissa == "10.00" else f"{mantissa}e{whole:+03d}"


def _digits(log10: float) -> str:
    return f"{log10:.6f}" if math.isfinite(log10) else ""
