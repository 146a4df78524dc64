"""How long chains are thought to take, against what they took."""

import pytest

from gradscope.measure.cost import Work, all_values, chain_cost, plain_cost, without_cost, without_jacobians

# Units of CPU time for a step of chains as PyTorch initialises them, one run each: states, steps, units.
FULL = [
    (32, 200, 25),
    (64, 200, 24),
    (128, 200, 40),
    (256, 100, 149),
    (512, 30, 1034),
    (768, 30, 2830),
    (1536, 30, 21300),
]
PATHS = [(16, 200, 8.5), (32, 200, 12), (64, 200, 13), (128, 100, 23), (256, 100, 110)]
# States of the layers from the one that is read to the one that reads, those of that one.
BLOCKS = [
    (128, 64, 200, 20),
    (512, 256, 30, 275),
    (768, 256, 30, 468),
    (1024, 512, 14, 2375),
    (1536, 512, 14, 4221),
]
# States, those of the layer whose block it is, or none: of some values, by their plain product.
PLAIN = [
    (64, 0, 10),
    (128, 0, 19),
    (256, 0, 54),
    (512, 0, 298),
    (768, 0, 633),
    (1536, 0, 3866),
    (128, 64, 16),
    (512, 256, 141),
    (768, 256, 209),
    (1536, 512, 1145),
]
# Of few steps: states, those of the layer whose block it is or none, steps; states, paths, steps.
FEW = [(1536, 0, 14, 1250), (1536, 512, 14, 1000), (1024, 0, 40, 490)]
FEW_WITHOUT = [(1536, 6, 14, 3400), (1536, 6, 30, 3800), (1024, 3, 40, 1150)]
# States, paths.
WITHOUT = [
    (32, 5, 3.8),
    (128, 5, 20),
    (256, 5, 96),
    (64, 4, 10),
    (512, 5, 513),
    (128, 3, 22),
    (768, 6, 2276),
]


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        *((chain_cost(size, steps), units) for size, steps, units in FULL),
        *((chain_cost(size, steps, path=True), units) for size, steps, units in PATHS),
        *((chain_cost(size, steps, rows=rows), units) for size, rows, steps, units in BLOCKS),
        *((plain_cost(size, rows), units) for size, rows, units in PLAIN),
        *((plain_cost(size, rows, steps=steps), units) for size, rows, steps, units in FEW),
        *((without_cost(size, paths, steps=steps), units) for size, paths, steps, units in FEW_WITHOUT),
        *((without_cost(size, paths), units) for size, paths, units in WITHOUT),
    ],
)
def test_units_said_are_about_those_taken(said, taken):
    assert 1 / 2 < said / taken < 2


def test_some_values_of_a_stack_take_about_as_long_as_is_said():
    """Three layers of 512 states, 14 steps: programs are compiled for every block that they are without."""
    work = Work((512, 512, 512), None, 256, steps=14, sequences=1, top=4)
    assert 1 / 2 < without_jacobians(work) / 1.8e6 < 2
    assert 1 / 2 < all_values(work) / 1.2e5 < 2
    assert all_values(work) < without_jacobians(work)
