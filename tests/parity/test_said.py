"""What a checkpoint leaves to be said beside the verdict: what is not applied, what was assumed."""

from __future__ import annotations

import dataclasses

import jsonschema
import pytest
import torch
from oracles.models import HIDDEN, INPUT, sequence

import gradscope
from gradscope.report.inspection import Inspection
from gradscope.report.inspection_table import render_contents
from gradscope.report.table import render_table
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look
from gradscope.schemas import schema

WIDE = Look(Terminal(color=False, unicode=True, width=160))


def saying(module, *said):
    """A module in memory whose layers say this of themselves."""
    live = gradscope.from_torch(module)
    layers = [dataclasses.replace(found, **words) for found, words in zip(live.layers, said, strict=True)]
    return dataclasses.replace(live, layers=tuple(layers))


@pytest.fixture(scope="module")
def stack():
    return torch.nn.LSTM(INPUT, HIDDEN, num_layers=2)


def test_one_layer_says_it_in_json_and_table(stack):
    live = saying(stack, {"not_applied": ("dropout of 0.5",), "assumed": ("axis 0 is time\x1b",)}, {})
    analysis = gradscope.analyze(checkpoint=live, layer="l0", inputs=sequence())
    result = analysis.to_dict()
    jsonschema.validate(result, gradscope.schema())
    assert result["problem"]["not_applied"] == ["dropout of 0.5"]
    assert result["problem"]["assumed"] == ["axis 0 is time\x1b"]
    table = render_table(analysis, WIDE)
    assert " • Not applied: dropout of 0.5\n • Assumed: 'axis 0 is time\\x1b'\n" in table


def test_several_layers_say_it_once_and_which_of_them(stack):
    both, one = "it is stateful", "dropout of 0.5"
    live = saying(stack, {"not_applied": (one, both)}, {"not_applied": (both,)})
    analysis = gradscope.analyze(checkpoint=live, inputs=sequence())
    result = analysis.to_dict()
    jsonschema.validate(result, gradscope.schema())
    assert result["problem"]["not_applied"] == [f"l0: {one}", both]
    assert result["problem"]["assumed"] == []
    assert [layer["problem"]["not_applied"] for layer in result["layers"]] == [[one, both], [both]]
    assert render_table(analysis, WIDE).count(both) == 1


def test_a_fresh_cell_has_nothing_to_say():
    problem = gradscope.analyze(cell="rnn", hidden=2, input_size=1, steps=2).to_dict()["problem"]
    assert not {"not_applied", "assumed"} & problem.keys()


def test_inspection_says_it_too(stack):
    live = saying(stack, {"not_applied": ("dropout of 0.5",)}, {"assumed": ("axis 0 is time",)})
    inspection = Inspection("x", live.contents(), ({}, {}))
    jsonschema.validate(inspection.to_dict(), schema("inspection"))
    assert inspection.to_dict()["layers"][1]["assumed"] == ["axis 0 is time"]
    table = render_contents(inspection, WIDE)
    assert " • l0: Not applied: dropout of 0.5\n • l1: Assumed: axis 0 is time\n" in table
