"""The layers of a model taken together: what is connected as one chain, what is not side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradscope.measure.measured import Measured, direct_sum, known_gain
from gradscope.problem.problems import Problems
from gradscope.product_svd.spectrum import Spectrum

_NUMBERS = re.compile(r"\d+")


def together(problems: Problems, measured: Sequence[Sequence[Measured]]) -> list[Measured]:
    """For every sequence, the chain of all states d(all states at T)/d(all states at t) of several layers.

    measured : of every problem in ``problems.every``, every sequence. Where one stack is all there
    is, this is its chain. Otherwise (directions, or layers that do not read each other) the Jacobians
    are block diagonal, and so is their product: its singular values are those of the blocks, its norm
    the largest of theirs.
    """
    count = len(problems.layers)
    stacked = {number for stack in problems.stacks for number in stack.members}
    found = []
    for each in zip(*measured, strict=True):
        alone = [_alone(number, each[number]) for number in range(count) if number not in stacked]
        joint = [_with_layers(one, each[:count]) for one in each[count:]]
        found.append(_side_by_side([*alone, *joint]))
    return found


def _with_layers(stack: Measured, layers: Sequence[Measured]) -> Measured:
    """A stack with its layers' own chains, which are measured with the layers."""
    own = {f"layer{number}": layer.full for number, layer in enumerate(layers)}
    own = {name: one for name, one in own.items() if name in stack.shares}
    between = {name: one for name, one in stack.spectra.items() if name != "full"}
    return replace(stack, spectra={"full": stack.full, **own, **between})


def _alone(number: int, measured: Measured) -> Measured:
    """A layer that is its whole group: its only path is itself."""
    full, name = measured.full, f"layer{number}"
    if not measured.shares:
        return Measured({"full": full}, {})
    some = np.ones_like(next(iter(measured.shares.values())))
    share = some if measured.alive else some * np.nan
    error = 0.0 if measured.alive else np.nan
    return replace(measured, spectra={"full": full, name: full}, shares={name: share}, shares_error=error)


def _side_by_side(groups: Sequence[Measured]) -> Measured:
    """Groups of layers of which none reads another."""
    if len(groups) == 1:
        return groups[0]
    leading = max(groups, key=lambda group: known_gain(group.full))
    chains = {name: one for group in groups for name, one in group.spectra.items() if name != "full"}
    shares = {
        name: share if group is leading else np.zeros_like(share)
        for group in groups
        for name, share in group.shares.items()
    }
    full = direct_sum([group.full for group in groups])
    without = {name: one for group in groups for name, one in _without(group, groups).items()}
    return Measured(
        {"full": full, **_in_order(chains)},
        _in_order(shares),
        without=_in_order(without),
        shares_error=_error_of_shares(leading, [group for group in groups if group is not leading]),
    )


def _error_of_shares(leading: Measured, others: Sequence[Measured]) -> float:
    """Infinite where another group may as well be the one that carries the gradient, or its gain is lost."""
    least = leading.full.log10_singular_values[0] - leading.full.log10_norm_error
    most = np.max([one.full.log10_singular_values[0] + one.full.log10_norm_error for one in others])
    return leading.shares_error if most < least else math.inf  # not >=, or NaN passes


def _without(group: Measured, groups: Sequence[Measured]) -> dict[str, Spectrum]:
    """The chain of all groups without each path of one, of which nothing is left where that is all of it."""
    if not group.shares:
        return {}
    others = [other.full for other in groups if other is not group]
    return {
        name: direct_sum([*others, *([group.without[name]] if name in group.without else [])])
        for name in group.spectra
        if name != "full"
    }


def _in_order(named: Mapping[str, Any]) -> dict[str, Any]:
    """Layers by their numbers, then what leads from one to another."""
    return dict(
        sorted(named.items(), key=lambda item: ("->" in item[0], *map(int, _NUMBERS.findall(item[0]))))
    )
