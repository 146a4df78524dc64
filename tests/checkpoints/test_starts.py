"""Where the layers of a recording start: what of it is said beside their gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradscope.cells import find
from gradscope.checkpoints import Layer, Recorded, Recording

B, T, N = 2, 3, 2
OUTPUTS = np.random.default_rng(0).standard_normal((B, T, N))
STATES = np.random.default_rng(1).standard_normal((B, T + 1, N))


def said(start, **others):
    """What is said of a layer that starts so, beside others of the recording."""
    recorded = Recorded({"this": replace(start, outputs=OUTPUTS), **others})
    return recorded.begun(Layer(find("rnn"), {}, "this", np.zeros(N))).not_applied


def state(h):
    return Recording(state={"h0": h})


@pytest.mark.parametrize(
    ("other", "end"),
    [
        (Recording(outputs=OUTPUTS), OUTPUTS[:, -1]),
        (Recording(outputs=OUTPUTS, lengths=(3, 1)), OUTPUTS[[0, 1], [2, 0]]),
        (Recording(outputs=OUTPUTS, backward=True), OUTPUTS[:, 0]),
        (Recording(last=OUTPUTS[:, 1]), OUTPUTS[:, 1]),
        (Recording(states=STATES, lengths=(3, 2)), STATES[[0, 1], [3, 2]]),
    ],
)
def test_a_start_that_is_where_another_layer_ended(other, end):
    words = "it starts from where that ended: the way back through its start is not in the gain"
    assert said(state(end), that=other) == (words,)
    beside = np.concatenate([np.ones((B, 1)), end], axis=1)  # of two directions, say
    assert said(state(beside), that=other) == (words,)
    assert said(Recording(states=np.stack([end] * (T + 1), axis=1)), that=other) == (words,)
    (unknown,) = said(state(end + 1e-9), that=other)
    assert unknown.startswith("it starts from a state that is not zero, whatever computes it")


def test_a_start_of_which_nothing_is_to_be_said():
    zero, learnt = np.zeros((B, N)), np.ones((B, N))
    for start in (Recording(), state(zero), state(learnt)):
        assert said(start, that=Recording(last=zero)) == ()
    assert said(state(zero), that=Recording(state={"h0": learnt})) == ()
