"""Factors on paths, held against sums of the equations' own paths."""

import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.asking import make_problem

import gradscope

T, N, D = 5, 3, 2
SMALL = {"hidden": N, "input_size": D, "steps": T, "gain": 2.0}


def check_values(found, jacobians):
    """Singular values are those of J_T ... J_1, down to where float64 loses them in such a product."""
    values = np.linalg.svd(np.linalg.multi_dot(jacobians[::-1]), compute_uv=False)
    mine = 10 ** found.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(mine, values[: len(mine)], rtol=1e-8, atol=1e-13 * values[0])


def scaled_steps(cell, system, factors):
    """Every step of a sequence as the sum of its paths times their factors, and the states."""
    states, steps = [system.state[0]], []
    for x in system.inputs[0]:
        given = (cell, system.parameters, x, states[-1])
        by_path = {path: equations.jacobian(*given, path) for path in system.cell.paths}
        steps.append(sum(factors.get(path, 1) * jacobian for path, jacobian in by_path.items()))
        states.append(equations.advance(*given))
    return steps


@pytest.mark.parametrize(
    ("cell", "scale", "factors"),
    [
        ("lstm-peephole", "R_*=0.75", dict.fromkeys(["R_z", "R_i", "R_f", "R_o"], 0.75)),
        ("lstm-peephole", {"*": -0.5, "p_f": 3, "carousel": 1}, None),
        pytest.param(
            "gru-reset-before",
            ["carry=0.3", "R_[rz]=1e-20"],
            {"carry": 0.3, "R_r": 1e-20, "R_z": 1e-20},
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("top", [None, 2])
def test_a_scaled_chain_is_the_product_of_scaled_sums(cell, scale, factors, top):
    system = make_problem(cell=cell, **SMALL).system
    if factors is None:
        factors = dict.fromkeys(system.cell.paths, -0.5) | {"p_f": 3.0, "carousel": 1.0}
    found = gradscope.analyze(cell=cell, scale=scale, top=top, **SMALL)
    check_values(found, scaled_steps(cell, system, factors))
    assert found.problem["scale"] == factors
    np.testing.assert_allclose(sum(found.shares.values()), 1, atol=1e-9)
    jsonschema.validate(found.to_dict(), gradscope.schema())


def test_factor_0_is_a_cut_and_the_states_stay_as_they_are():
    scaled, cut = (
        gradscope.analyze(cell="lstm", **SMALL, **options)
        for options in ({"scale": "R_*=0"}, {"cut": ("R_z", "R_i", "R_f", "R_o")})
    )
    for one, other in zip(scaled.full.spectra, cut.full.spectra, strict=True):
        np.testing.assert_allclose(one.log10_singular_values, other.log10_singular_values, atol=1e-12)
    assert scaled.chain("carousel").log10_norm == cut.chain("carousel").log10_norm
    assert scaled.gates == cut.gates


def test_scaled_layers_of_a_stack(tmp_path):
    """[[A_0, 0], [B A_0, A_1]] of layers whose own paths are scaled; B is within the step."""
    state = layouts.recurrent("lstm", D, N, layers=2, dtype="float64")
    x = np.random.default_rng(1).standard_normal((T, D))
    found = gradscope.analyze(checkpoint=layouts.saved(state, tmp_path / "m.pt"), inputs=x, scale="R_?=0.5")
    params = [layouts.equations_of("lstm", state, end) for end in ("_l0", "_l1")]
    below, above, steps = np.zeros(2 * N), np.zeros(2 * N), []

    def own(p, x, state):
        each = [
            (0.5 if path.startswith("R") else 1) * equations.jacobian("lstm", p, x, state, path)
            for path in ("carousel", "R_z", "R_i", "R_f", "R_o")
        ]
        return sum(each)

    for one in x:
        first = own(params[0], one, below)
        below = equations.advance("lstm", params[0], one, below)
        read = np.stack(
            [equations.advance("lstm", params[1], h, above).imag for h in equations.nudged(below[N:])], axis=1
        )
        lower = read / equations.H @ first[N:]
        steps.append(np.block([[first, np.zeros((2 * N, 2 * N))], [lower, own(params[1], below[N:], above)]]))
        above = equations.advance("lstm", params[1], below[N:], above)
    check_values(found, steps)
    assert found.problem["scale"] == dict.fromkeys(["R_z", "R_i", "R_f", "R_o"], 0.5)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("R_q=1", "scale 'R_q': not a path of cell lstm in view 'state': it has carousel, R_z"),
        ("R_o", "expected PATH=FACTOR such as R_*=0.75"),
        ("R_o=much", "expected PATH=FACTOR such as R_*=0.75"),
        ({"R_o": np.inf}, "expected a finite number"),
    ],
)
def test_scales_that_cannot_be_meant(scale, message):
    with pytest.raises(gradscope.InputError) as error:
        make_problem(cell="lstm", scale=scale, **SMALL)
    assert message in str(error.value)
