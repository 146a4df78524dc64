"""The layers of a model taken together: what is connected as one chain, what is not side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from gradscope.chain import Spectrum
from gradscope.measure import Measured
from gradscope.problems import Problems

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
    own = {f"layer{number}": layer.spectra["full"] for number, layer in enumerate(layers)}
    own = {name: one for name, one in own.items() if name in stack.shares}
    between = {name: one for name, one in stack.spectra.items() if name != "full"}
    return Measured({"full": stack.spectra["full"], **own, **between}, stack.shares)


def _alone(number: int, measured: Measured) -> Measured:
    """A layer that is its whole group: its only path is itself."""
    full, name = measured.spectra["full"], f"layer{number}"
    some = np.ones_like(next(iter(measured.shares.values())))
    return Measured({"full": full, name: full}, {name: some if measured.alive else some * np.nan})


def _side_by_side(groups: Sequence[Measured]) -> Measured:
    """Groups of layers of which none reads another."""
    if len(groups) == 1:
        return groups[0]
    leading = max(groups, key=lambda group: group.spectra["full"].log10_singular_values[0])
    chains = {name: one for group in groups for name, one in group.spectra.items() if name != "full"}
    shares = {
        name: share if group is leading else np.zeros_like(share)
        for group in groups
        for name, share in group.shares.items()
    }
    full = direct_sum([group.spectra["full"] for group in groups])
    return Measured({"full": full, **_in_order(chains)}, _in_order(shares))


def _in_order(named: Mapping[str, Any]) -> dict[str, Any]:
    """Layers by their numbers, then what leads from one to another."""
    return dict(
        sorted(named.items(), key=lambda item: ("->" in item[0], *map(int, _NUMBERS.findall(item[0]))))
    )


def direct_sum(spectra: Sequence[Spectrum]) -> Spectrum:
    """The spectrum of a block diagonal product from those of its blocks."""
    values = np.concatenate([s.log10_singular_values for s in spectra])
    # Descending; those that are lost come before the zeros.
    values = values[np.lexsort((-values, np.isneginf(values), np.isnan(values) | np.isneginf(values)))]
    largest = max(spectra, key=lambda s: s.log10_singular_values[0])
    whole = all(s.exact_zeros is not None for s in spectra)
    lags, norms = _norms(spectra)
    return Spectrum(
        # Of the top values of each, those are sure that are as many as any block was asked for.
        values if whole else values[: max(len(s.log10_singular_values) for s in spectra)],
        sum(s.exact_zeros or 0 for s in spectra) if whole else None,
        max(s.log10_error for s in spectra),
        largest.log10_norm_error,
        np.concatenate([s.left if s is largest else np.zeros_like(s.left) for s in spectra]),
        np.concatenate([s.right if s is largest else np.zeros_like(s.right) for s in spectra]),
        norms,
        lags,
        sum(s.lost for s in spectra),
        max((s.log10_largest_gain for s in spectra if s.log10_largest_gain is not None), default=None),
    )


def _norms(spectra: Sequence[Spectrum]) -> tuple[Any, Any]:
    """The largest norm at every lag that is known of all blocks; and these lags, None for all of them."""
    each = [np.asarray(s.log10_norm_by_lag, np.float64) for s in spectra]
    if all(s.lags is None for s in spectra):
        return None, np.max(each, axis=0)
    at = [np.arange(1, len(n) + 1) if s.lags is None else s.lags for s, n in zip(spectra, each, strict=True)]
    common = reduce(np.intersect1d, at)
    return np.asarray(common), np.max([n[np.isin(a, common)] for a, n in zip(at, each, strict=True)], axis=0)
