"""Which axis of a batch of inputs is time: what the user says, what the model takes, else (B, T, d)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradscope.errors import InputError, counted, listed
from gradscope.problem.inputs import Sequences

if TYPE_CHECKING:
    from gradscope.checkpoints import Model

# Times as many sequences as steps make one think that the two axes have been taken for each other.
_FAR = 8


def time_major(known: bool | None, *, asked: bool) -> bool:
    """Whether a batch is (T, B, d); raises InputError where the model is known to take something else."""
    if asked and known is False:
        raise InputError(
            "inputs are said to be (T, B, d), but the model takes (B, T, d): leave --time-major out, or swap "
            "axes 0 and 1 of the inputs"
        )
    return asked or known is True


def known_time_major(model: Model | None) -> bool | None:
    """What the layers that read the inputs take, None where that is not known; InputError if they differ."""
    roots = [layer for layer in model.layers if not layer.below] if model else []
    first, second = ([one.name for one in roots if one.time_major is says] for says in (True, False))
    if first and second:
        raise InputError(
            f"layer {listed(first)} takes (T, B, d) and {listed(second)} (B, T, d): the same inputs cannot "
            "be both, choose with --layer"
        )
    return True if first else False if second else None


def assumption(given: Sequences | None, *, asked: bool, known: bool | None) -> str:
    """What is to be said of the axes of a batch, "" where there is nothing that surprises."""
    if given is None or not given.batched or asked or known is False:
        return ""
    far, read = _far(given), _read(given)
    if known:
        swap = "; if it is the batch, swap axes 0 and 1" * far
        return f"axis 0 of the inputs is time, as the model takes them, (T, B, d): {read}{swap}"
    return f"axis 0 of the inputs is the batch: {read}; if it is time, add --time-major" if far else ""


def recorded_assumption(given: Sequences, *, known: bool | None) -> str:
    """The same of what a layer read as its model ran, which says nothing of what was meant."""
    if not _far(given):
        return ""
    if known:
        said = "its layer takes (T, B, d): if that is the other way round, it wants batch_first=True"
    else:
        said = "if that is the other way round, swap axes 0 and 1 of the batch"
    return f"the model was run on {_read(given)}, and {said}"


def _far(given: Sequences) -> bool:
    return given.shape[0] >= _FAR * given.shape[1]


def _read(given: Sequences) -> str:
    batch, steps, _ = given.shape
    return f"{counted(batch, 'sequence')} of {counted(steps, 'step')}"
