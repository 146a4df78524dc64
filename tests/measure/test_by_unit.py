"""Where a loss's gradient is, against the same sought cell by cell."""

import numpy as np

from gradscope.measure.by_unit import by_unit


def test_every_cell_is_the_largest_of_its_units_and_steps():
    rng = np.random.default_rng(0)
    deltas = {f"layer0.d{gate}": rng.normal(size=(2, 300, 70)) for gate in "zf"} | {
        "layer1.dz": np.zeros((2, 5, 3))
    }
    found = by_unit(deltas)
    assert list(found) == ["layer0", "layer1"]
    one = found["layer0"]
    assert (len(one["step"]), len(one["unit"])) == (120, 64)
    assert (one["steps"], one["units"]) == (300, 70)
    steps, units = [*one["step"], 301], [*one["unit"], 71]
    for i in range(64):
        for j in range(120):
            inside = [
                np.abs(each[:, steps[j] - 1 : steps[j + 1] - 1, units[i] - 1 : units[i + 1] - 1]).max()
                for name, each in deltas.items()
                if name.startswith("layer0")
            ]
            assert abs(one["log10"][i][j] - np.log10(max(inside))) <= 5.1e-3
    assert np.isneginf(found["layer1"]["log10"]).all()
    errors = {name: np.full_like(each, 1e-3) for name, each in deltas.items()}
    errors["layer0.dz"][1, 299, 69] = 100.0
    known = by_unit(deltas, errors)["layer0"]["log10"]
    assert np.isnan(known[63][119])  # its largest is not known
    assert (np.isnan(known).sum(), known[0][0]) == (1, one["log10"][0][0])
    assert (found["layer1"]["step"], found["layer1"]["unit"]) == ([1, 2, 3, 4, 5], [1, 2, 3])
