"""What to do about it, as a section of the page: settings that were verified, and field advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gradscope.report.gain_words import gain_told
from gradscope.report.html_text import figures_of, listing, table, titled
from gradscope.report.pictures.svg import element, escaped
from gradscope.report.verdict import scientific

_HEADINGS = ("setting", "gain", "horizon, steps", "verdict", "first order said", "evaluations", "shares, %")
_VERIFIED = (
    "Gain, horizon and verdict are of the changed network, analysed on these inputs; what training makes of "
    "it is another question."
)


def remedies_section(result: Mapping[str, Any]) -> Iterator[str]:
    """Of a result with suggestions, else nothing."""
    if "suggestions" not in result:
        return
    found, target = result["suggestions"], str(result["target"])
    yield titled("What to do about it, verified")
    if result["reached"]:
        yield element("p", escaped(f"The target, {target}, is reached already."))
    for caption, reaches in (
        (f"Settings that reach {target}", True),
        (f"No setting of these reaches {target}; the nearest that was found", False),
    ):
        rows = [_row(one) for one in found if bool(one["reaches"]) == reaches]
        if rows:
            yield table(caption, _HEADINGS, rows)
    if found:
        yield element("p", escaped(_VERIFIED), class_="quiet")
    yield listing(result["advice"])


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    predicted, level = one["predicted_log10"], one["verdict"]
    shares = (
        f"{name} {100 * before:.0f} to {100 * after:.0f}"
        for name, (before, after) in one["shares"].items()
        if before is not None and after is not None
    )
    return (
        str(one["words"]),
        "–" if level is None else gain_told(one["verified_log10"], lost="unmeasured" in one),
        figures_of(one["horizon"], "g"),
        str(one["verdict"] or "no number"),
        "" if predicted is None else scientific(predicted),
        str(one["evaluations"]),
        ", ".join(shares),
    )
