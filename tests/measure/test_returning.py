"""Where the gradient is on its way back, against plain products."""

import json

import jsonschema
import numpy as np
import pytest
from oracles import layouts

import gradscope
from gradscope.linearize.cell_chain import CellChain
from gradscope.linearize.paths import DensePath
from gradscope.linearize.segmented import SegmentedChain
from gradscope.measure.returning import returning


@pytest.mark.parametrize("steps", [7, 250])
def test_every_column_has_the_largest_of_its_steps(steps):
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(steps, 3, 3)) / np.sqrt(3)
    whole = CellChain((DensePath("a", stack),), steps, 3)
    starts = [0, 4] if steps == 7 else [0, 100, 200]
    parts = [CellChain((DensePath("a", part),), len(part), 3) for part in np.split(stack, starts[1:])]
    segmented = SegmentedChain(parts.__getitem__, starts, steps)
    left = rng.normal(size=3)
    left /= np.linalg.norm(left)
    back = [left]
    for step in stack[:0:-1]:
        back.append(step.T @ back[-1])
    sizes = np.log10(np.abs(back[::-1]))
    for chain in (whole, segmented):
        found = returning(chain, left, {"a": np.where(np.arange(steps) == 1, np.nan, 1.0)})
        assert len(found["step"]) == min(steps, 120)
        for column, (first, after) in enumerate(
            zip(found["step"], [*found["step"][1:], steps + 1], strict=True)
        ):
            inside = [t - 1 for t in range(first, after) if t != 2]  # where shares are lost nothing is said
            expected = sizes[inside].max(axis=0) if inside else np.full(3, -np.inf)
            np.testing.assert_allclose(found["log10"][column], expected, atol=1e-9)


def test_of_a_linear_network_it_is_the_powers_of_its_matrix(tmp_path):
    rng = np.random.default_rng(1)
    R, steps = rng.normal(size=(5, 5)) / 3, 9
    np.savez(tmp_path / "m.npz", W=np.ones((5, 2)), R=R, b=np.zeros(5))
    analysis = gradscope.analyze(
        checkpoint=tmp_path / "m.npz", cell="linear", inputs=rng.normal(size=(2, steps, 2))
    )
    told = json.loads(analysis.to_json())
    jsonschema.validate(told, gradscope.schema())
    u = np.linalg.svd(np.linalg.matrix_power(R, steps))[0][:, 0]
    expected = [np.log10(np.abs(np.linalg.matrix_power(R.T, steps - t) @ u)) for t in range(1, steps + 1)]
    np.testing.assert_allclose(np.array(told["returning"][""]["log10"]).T, expected, atol=5.1e-3)
    assert "returning" not in gradscope.analyze(cell="linear", hidden=3, steps=4, only="paths").to_dict()


def test_a_stack_has_it_by_layer(tmp_path):
    layouts.saved(layouts.recurrent("lstm", 3, 4, layers=2), tmp_path / "m.pt")
    analysis = gradscope.analyze(checkpoint=tmp_path / "m.pt", inputs=np.ones((6, 3)))
    told = analysis.to_dict()
    assert [*told["returning"]] == ["layer0", "layer1"]
    assert all([*layer["returning"]] == [""] for layer in told["layers"])
    last = np.abs(analysis.full.spectra[0].left).reshape(2, 2, 4).max(axis=1)  # of (c, h) of each layer
    for number in range(2):
        column = [row[-1] for row in told["returning"][f"layer{number}"]["log10"]]
        np.testing.assert_allclose(10.0 ** np.array(column, float), last[number], rtol=0.012)


def test_of_the_top_values_it_is_the_same():
    """Without Jacobians, as conftest has it of small chains too."""
    few, every = (
        gradscope.analyze(hidden=4, input_size=3, steps=30, top=top).to_dict()["returning"][""]
        for top in (1, "all")
    )
    assert few["step"] == every["step"]
    np.testing.assert_allclose(few["log10"], every["log10"], atol=0.011)
