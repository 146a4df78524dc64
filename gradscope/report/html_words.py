"""What a page explains: its terms, where links lead to, and how to read each picture."""

from __future__ import annotations

from collections.abc import Collection

from gradscope.report.html_text import folded
from gradscope.report.pictures.svg import element, escaped

# Level -> a sign whose shape says it too, to those who see few colours.
SIGNS = {"vanishing": "▼", "stable": "●", "exploding": "▲", "undecided": "◆"}

CARRIER = "carried by"
TERMS = {
    "verdict": (
        "Vanishing: the gain is below the one threshold at the last lag. Exploding: it is above the other at "
        "any lag. Stable: neither. Undecided: its error straddles a threshold."
    ),
    "gain": (
        "sigma_1, the largest singular value of the product of all one-step Jacobians: the most that any "
        "gradient is amplified on its way from the last step to the first."
    ),
    "rate": "The logarithm of the gain per step, in nats: below 0 the gradient fades, above 0 it grows.",
    "horizon": "The largest lag up to which the gain stays at or above the vanishing threshold.",
    CARRIER: (
        "The path with the largest share. A share is how much of the gradient a path carries; shares sum to "
        "1, one below 0 works against the others."
    ),
    "chain": (
        "A product of Jacobians. That of one path is of what goes through that recurrent matrix (or the "
        "carousel) alone, along the same states."
    ),
    "worst error": (
        "Of the logarithm of the worst of all singular values; the gain's own is with the verdict."
    ),
}

_PICTURES = {
    "lag": (
        "Each line says how much of the last step's gradient is left k steps back, at most. Where the bold "
        "one crosses the vanishing threshold is the horizon; what lies further back has next to no part in "
        "what is learned. Its slope is the rate. The other lines are of one path alone: that nearest to the "
        "bold one carries it."
    ),
    "share": (
        "At every step the shares sum to 100 %. The gain answers most to the path with the largest: that is "
        "where to turn a knob. Below 0 a path works against the others."
    ),
    "heatmap": (
        "A row for every unit, a column for every step, the last step at the right. Bright rows are the "
        "units that bring the gradient back; where all rows go dark, from right to left, it is lost."
    ),
    "spectrum": (
        "Each singular value is the gain of one direction of the state. A flat line keeps all directions; "
        "where it falls steeply only the first few carry anything back, and a single one at the left says "
        "that all of the gradient is pressed into one direction."
    ),
    "gates": (
        "Near 0 or 1 a gate is saturated: its slope is next to 0, and no gradient goes through what it "
        "decides. A forget gate near 1 holds its memory, and is saturated by right; near 0 it forgets within "
        "steps."
    ),
    "eigenvalues": (
        "Beyond the unit circle a direction grows with every step that the matrix alone is applied, within "
        "it shrinks. Singular values far above the radius say that a single step can amplify more than many "
        "do."
    ),
    "layers": (
        "Bold is a layer on its own. One that falls away sooner than the others is where the way back in "
        "time ends; where the line of all lies far above every one, gradients come back through other "
        "layers."
    ),
}


def reading(name: str) -> str:
    """How to read the picture of that name, folded."""
    return folded("How to read it", element("p", escaped(_PICTURES[name])))


def linked(term: str) -> str:
    """The term, which leads to its explanation below."""
    return element("a", escaped(term), href=f"#{_place(term)}")


def sign_of(level: str) -> str:
    """The level's shape, which says nothing to those who hear the page: the word stands beside it."""
    return element("span", f"{SIGNS.get(level, '')} ", class_=f"level {level}", aria_hidden="true")


def explained(terms: Collection[str]) -> str:
    """These terms in their order, for links to lead to."""
    each = (
        element("dt", escaped(term.capitalize()), id=_place(term)) + element("dd", escaped(TERMS[term]))
        for term in TERMS
        if term in terms
    )
    return folded("How to read this page", element("dl", *each, class_="terms"))


def _place(term: str) -> str:
    return f"word-{term.replace(' ', '-')}"
