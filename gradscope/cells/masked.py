"""A cell as it runs in training, with masks that are part of what it reads."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal

from gradscope.cells.cell import Cell
from gradscope.cells.notation import is_recurrent

# h-detach: Kanuparthi et al. 2019 (arXiv 1810.03023); recurrent dropout: as Keras', after Gal and Ghahramani
# 2016 (arXiv 1512.05287); zoneout: Krueger et al. 2017 (arXiv 1606.01305).
MaskLaw = Literal["h-detach", "recurrent-dropout", "zoneout"]


def mask_width(cell: Cell, law: MaskLaw, hidden: int) -> int:
    """Numbers of a mask at every step, of a stack of all its layers."""
    if cell.members:
        return sum(mask_width(member.cell, law, member.hidden) for member in cell.members)
    output = cell.output(hidden)
    every = sum(map(is_recurrent, cell.paths)) * (output.stop - output.start)
    width: dict[MaskLaw, int] = {
        "h-detach": 1,
        "recurrent-dropout": every,
        "zoneout": cell.size(hidden),
    }
    return width[law]


@cache
def masked(cell: Cell, law: MaskLaw, hidden: int, kept: tuple[str, ...]) -> Cell:
    """The cell that reads (input, mask), whose only chain is the whole of the paths ``kept``.

    The mask of h-detach is a number by which the derivative through the recurrent matrices is multiplied, its
    value unchanged; that of recurrent dropout multiplies h on its way into each of them; that of zoneout is
    what of every unit's old state stays: s_t = d s_(t-1) + (1 - d) F(s_(t-1), x_t).
    """
    width, output = mask_width(cell, law, hidden), cell.output(hidden)
    recurrent = tuple(filter(is_recurrent, cell.paths))
    reach = partial(_reach, law, output)

    def step(parameters: Any, x: Any, state: Any) -> Any:
        import jax

        inputs, mask = x[:-width], x[-width:]
        copies = {path: state if path in kept else jax.lax.stop_gradient(state) for path in cell.paths}
        # Of recurrent dropout every matrix has its own part.
        parts = (
            jax.numpy.split(mask, len(recurrent)) if law == "recurrent-dropout" else [mask] * len(recurrent)
        )
        for path, part in zip(recurrent, parts, strict=True):
            copies[path] = reach(copies[path], part)
        new = cell.step(parameters, inputs, copies or state)
        return mask * state + (1 - mask) * new if law == "zoneout" else new

    return Cell(
        name=f"{cell.name} with {law}",
        parameters=lambda n, d: cell.parameters(n, d - width),
        step=step,
        components=cell.components,
        sizes=cell.sizes,
    )


def masked_stack(cell: Cell, law: MaskLaw, input_size: int) -> Cell:
    """The stack whose layers have masks of their own, side by side after the ``input_size`` columns it reads.

    What a layer reads of those below it in the same step is no recurrent path, and stays as it is.
    """
    from gradscope.cells.stack import stacked

    members, taken = [], input_size
    for member in cell.members:
        width = mask_width(member.cell, law, member.hidden)
        along = masked(member.cell, law, member.hidden, member.cell.paths)
        reads = (*member.reads, (taken, taken + width))
        members.append(replace(member, cell=along, input_size=member.input_size + width, reads=reads))
        taken += width
    return stacked(tuple(members))


def _reach(law: MaskLaw, output: slice, copy: Any, mask: Any) -> Any:
    """The state as a recurrent matrix reads it."""
    import jax

    if law == "recurrent-dropout":
        return copy.at[output].multiply(mask)
    if law == "h-detach":
        held = jax.lax.stop_gradient(copy)
        return held + mask * (copy - held)
    return copy
