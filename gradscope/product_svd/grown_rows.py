"""The largest values of products of few steps at every lag, side by side, from combinations of their rows.

A product of many states takes m^3 operations a step. Of few steps it is sooner to send single vectors through
all of them, to and fro. Some combinations of the rows are carried from lag to lag, which takes one step each;
at a few lags at a time those are added that the largest values lack (block Lanczos from a space that is near:
Wu, Simon 2000). Rows of noise go along as in ``plain_product``, and tell what rounding leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd import log_scale
from gradscope.product_svd.error_estimate import EPS
from gradscope.product_svd.plain_product import NOISE_ROWS, RANGE, SMALL, Beside, even, largest_row
from gradscope.product_svd.tail_norms import CAUTION, bordered, lacking, orthonormal

# From so many states on this is the sooner way, of as many steps as go so often into the states, if all steps
# fit. Fewer rows or columns are hardly more than what is carried, and more values are.
FEWEST_STATES, STEPS_PER_STATE, _NUMBERS, _FEWEST, _VALUES = 768, 24, 2**27, 128, 16
# Combinations that are drawn, and stay; others that stay for the next lags; times to and fro at most.
_DRAWN, _KEPT, _MOST = 4, 24, 60
# What a value may lack, relative.
_LACKING = 1e-11
# How far from P v the first left vector may be, relative, where vectors are asked for; in roundings besides.
_OFF, _ROUNDINGS = 1e-12, 64
# Random rows that tell the size of a step's columns.
_PROBES = 8
# Lags times chains that are gone through together: with fewer vectors it is the step that takes long.
_TOGETHER = 6


class Grown(NamedTuple):
    """The largest values of P chains at one lag: log10, lacking, noise (P, top).

    lacking, noise : what they may lack, and what a rounding makes of them, relative; left (P, r), right
    (P, c) : vectors of the first.
    """

    log10: Array
    lacking: Array
    noise: Array
    left: Array
    right: Array


class _Pass(NamedTuple):
    """What going to and fro tells of G lags of P products, of the ``top`` values, the next one and one drawn.

    size : (G, P, top + 2) norms of their images, the first of them the values; unit : (.., c) these images as
    unit vectors; left : (G, P, top, r); ahead : (G, P, top + 1, r) what the product makes of the images but
    the next one's, less sigma times what is on the left.
    """

    size: Array
    unit: Array
    left: Array
    ahead: Array

    @property
    def top(self) -> int:
        """How many values."""
        return int(self.left.shape[2])

    @property
    def sigma(self) -> Array:
        """(G, P, top) the values."""
        return self.size[..., : self.top]

    @property
    def off(self) -> Array:
        """(G, P, top) how far P v is from sigma u, relative."""
        return np.asarray(np.linalg.norm(self.ahead[:, :, : self.top], axis=3) / self.sigma)

    @property
    def lacks(self) -> Array:
        """(G, P, top) what the values may lack, relative."""
        return lacking(self.off, self.size[..., self.top, None] / self.sigma)

    @property
    def beside(self) -> Array:
        """(G, P) the next value, over the last of the others."""
        return np.asarray(self.size[..., self.top] / self.sigma[..., -1])

    def settled(self, second: Array) -> Array:
        """(G,) whether values lack next to nothing and none grows up to them; second : ``beside`` before."""
        last = self.sigma[..., -1]
        along = np.linalg.norm(self.ahead[:, :, self.top], axis=2) / last
        drawn, beside = self.size[..., -1] / last, self.beside
        grows = np.minimum(along + CAUTION * (along - drawn), beside + CAUTION * (beside - second))
        found = (self.lacks <= _LACKING).all(axis=2) & (np.maximum(grows, along) < 1)
        return np.asarray(found.all(axis=1))


def few_steps(length: float, size: int, sides: Iterable[int] = (), top: int = 1) -> bool:
    """Whether products of so many steps of so many states have their largest values sooner in this way.

    sides : rows and columns of what is asked for; top : how many values.
    """
    few = size >= FEWEST_STATES and length * STEPS_PER_STATE <= size and length * size**2 <= _NUMBERS
    return few and min(sides, default=size) >= _FEWEST and top <= _VALUES


def grown(
    steps: Sequence[Beside],
    shape: tuple[int, int],
    top: int = 1,
    window: tuple[slice, slice] | None = None,
    vectors: bool = False,
) -> list[Grown] | None:
    """The largest value at every lag, of the last the ``top`` largest; None where any are not found.

    steps : the last one first; shape : (P, m); window : rows and columns of the products that are asked for;
    vectors : whether those of the whole are wanted as well as its value.
    """
    rows, found = GrownRows(steps, shape, window or (slice(None), slice(None))), list[Grown]()
    length, together = len(steps), max(1, _TOGETHER // shape[0])
    groups = [range(first, min(first + together, length)) for first in range(1, length, together)]
    for lags in [*groups, range(length, length + 1)]:
        asked = (top, vectors) if length in lags else (1, False)
        some = rows.improved(*asked) if rows.carried(lags) else None
        if some is None:
            return None
        found.extend(some)
    return found


class GrownRows:
    """Orthonormal combinations of the rows of P products, and what the last steps make of them.

    lags : of how many steps that is, a few at a time.
    """

    def __init__(self, steps: Sequence[Beside], shape: tuple[int, int], window: tuple[slice, slice]) -> None:
        count, self._size = shape
        self._steps, self._rng, self.lags = steps, np.random.default_rng(0), range(1)
        self._rows, self._columns = window
        drawn = self._rng.normal(size=(count, len(range(self._size)[self._rows]), _DRAWN + _KEPT))
        self._left = np.linalg.qr(drawn)[0].swapaxes(1, 2)
        noise = np.zeros((count, NOISE_ROWS, self._size))
        # Of every lag (L, P, s, m), noise first, then an image of each combination; over 2**exponent.
        self._held = np.concatenate([noise, self._among_all(self._left, self._rows)], axis=1)[None]
        self._exponent = np.zeros((1, count), np.int64)

    def carried(self, lags: range) -> bool:
        """From the last of the lags so far to the next ones. Whether float64 holds all of it."""
        held, exponent, every = self._held[-1], self._exponent[-1], []
        for lag in lags:
            found = self._times(self._steps[lag - 1], held)
            if found is None:
                return False
            held, exponent = found[0], exponent + found[1]
            every.append((held, exponent))
        self._held, self._exponent = (np.stack(each) for each in zip(*every, strict=True))
        self.lags = lags
        return True

    def _times(self, step: Beside, held: Array) -> tuple[Array, Array] | None:
        """One step more, over powers of two, and the exponents (P,) of these; None where digits are lost."""
        probes = self._rng.choice([-1.0, 1.0], size=(_PROBES, self._size))
        both = np.concatenate([held, np.broadcast_to(probes, (len(held), *probes.shape))], axis=1)
        new = np.zeros_like(both)
        with np.errstate(over="ignore", invalid="ignore"):
            step.times(both, new)
            columns = np.sqrt((new[:, -_PROBES:] ** 2).mean(axis=1))
            rounded = EPS * largest_row(held[:, NOISE_ROWS:])[:, None] * columns
            new = new[:, :-_PROBES]
            new[:, :NOISE_ROWS] += rounded[:, None] * self._rng.normal(size=(NOISE_ROWS, self._size))
        largest = np.abs(new[:, NOISE_ROWS:, self._columns]).max(axis=(1, 2))
        if not (np.isfinite(new).all() and largest.min() > SMALL and even(columns).all()):
            return None
        more = np.frexp(largest)[1].astype(np.int64)
        return np.ldexp(new, -more[:, None, None]), more

    def improved(self, top: int, vectors: bool) -> list[Grown] | None:
        """The largest values at these lags, from as many more combinations as it takes; None if too many.

        All lags have all combinations, and each adds what it lacks.
        """
        found: dict[int, Grown] = {}
        going, second = np.arange(len(self.lags)), np.zeros(self._exponent.shape)
        gram, drawn = self._products(slice(0, None), going), None
        for _ in range(_MOST):
            turned = self._ritz(gram, top)
            drawn = self._drawn(turned[:, :, :top]) if drawn is None else drawn
            one = self._passed(turned, drawn, going, top)
            if one is None:
                return None
            noise, done, lacks = self._noise(one, going), one.settled(second), one.lacks
            if vectors:
                done &= (one.off <= _OFF + _ROUNDINGS * noise)[..., 0].all(axis=1)
                lacks[..., 0] = np.maximum(lacks, one.off)[..., 0]
            noise = np.maximum(noise, np.abs((one.left * one.ahead[:, :, :top]).sum(axis=3)) / one.sigma)
            for k in np.flatnonzero(done):
                log10 = log_scale.decades(one.sigma[k], self._exponent[going[k], :, None])
                found[going[k]] = Grown(log10, lacks[k], noise[k], one.left[k, :, 0], one.unit[k, :, 0])
            going, second, gram = going[~done], one.beside[~done], gram[~done]
            if not len(going):
                self._keep()
                return [found[k] for k in range(len(self.lags))]
            old = self._left.shape[1]
            self._add(one.ahead[~done])
            gram = bordered(gram, self._products(slice(old, None), going))
            drawn = self._own(len(going), old, top)
        return None

    def _passed(self, turned: Array, drawn: Array, going: Array, top: int) -> _Pass | None:
        """One pass to and fro of the first turned rows and what is drawn; None where a value is nothing."""
        both = np.concatenate([turned[:, :, : top + 1], drawn], axis=2)
        images = both @ self._seen[going]
        size = np.linalg.norm(images, axis=3)
        if not size[..., :top].min() > SMALL:
            return None
        unit = images / np.maximum(size, SMALL)[..., None]
        left = turned[:, :, :top] @ self._left
        ahead = self._ahead(np.delete(unit, top, axis=2), going)
        ahead[:, :, :top] -= size[..., :top, None] * left
        return _Pass(size, unit, left, ahead)

    @property
    def _seen(self) -> Array:
        """(L, P, s, c) what is asked for of the images."""
        return self._held[:, :, NOISE_ROWS:, self._columns]

    def _ritz(self, gram: Array, top: int) -> Array:
        """(.., s, s) as rows the left singular vectors of the images, of descending values."""
        if top > 1:  # of which squares have not all digits
            return np.linalg.svd(self._seen, full_matrices=False)[0].swapaxes(2, 3)
        return np.asarray(np.linalg.eigh(gram)[1][..., ::-1].swapaxes(-1, -2))

    def _products(self, new: slice, going: Array) -> Array:
        """(G, P, n, s) of some images at these lags with all of them."""
        seen = self._seen[going]
        return np.asarray(seen[:, :, new] @ seen.swapaxes(2, 3))

    def _add(self, new: Array) -> None:
        """What each of some lags adds, (G, P, n, r), to the combinations of all."""
        rows = new.swapaxes(0, 1).reshape(new.shape[1], -1, new.shape[3])
        rows = orthonormal(rows[:, None], self._left[:, None])[:, 0]
        self._left = np.concatenate([self._left, rows], axis=1)
        self._held = np.concatenate([self._held, self._images(rows)], axis=2)

    def _own(self, going: int, old: int, top: int) -> Array:
        """(G, P, 1, s) the last of those that each lag has added to ``old`` ones."""
        found = np.zeros((going, len(self._left), 1, self._left.shape[1]))
        found[np.arange(going), :, 0, old + top + (top + 1) * np.arange(going)] = 1.0
        return found

    def _noise(self, one: _Pass, going: Array) -> Array:
        """(G, P, top) what noise there is along the vectors on the right, relative."""
        each = []
        for lag, right in zip(going, one.unit[:, :, : one.top], strict=True):
            along = self._held[lag, :, :NOISE_ROWS, self._columns] @ right.swapaxes(1, 2)
            each.append(np.sqrt((along**2).mean(axis=1)))
        return np.array(each) / one.sigma

    def _drawn(self, found: Array) -> Array:
        """(G, P, 1, s) mixtures of those that are drawn, without their parts along what was found."""
        drawn = np.zeros((*found.shape[:2], 1, found.shape[3]))
        drawn[..., :_DRAWN] = self._rng.normal(size=(*drawn.shape[:3], _DRAWN))
        drawn -= drawn @ found.swapaxes(2, 3) @ found
        return np.asarray(drawn / np.linalg.norm(drawn, axis=3, keepdims=True))

    def _keep(self) -> None:
        """Only those that are drawn, and what the largest values of the last lag have beside them."""
        if self._left.shape[1] <= _DRAWN + _KEPT:
            return
        turned = self._ritz(self._products(slice(0, None), np.array([-1])), 1)[0]
        basis = np.linalg.qr(turned[:, :_KEPT, _DRAWN:].swapaxes(1, 2))[0].swapaxes(1, 2)
        first, rest = np.split(self._left, [_DRAWN], axis=1)
        self._left = np.concatenate([first, basis @ rest], axis=1)
        first, rest = np.split(self._held[-1], [NOISE_ROWS + _DRAWN], axis=1)
        self._held = np.concatenate([first, basis @ rest], axis=1)[None]
        self._exponent = self._exponent[-1:]

    def _among_all(self, vectors: Array, part: slice) -> Array:
        """Vectors of some states as those of all."""
        found = np.zeros((*vectors.shape[:-1], self._size))
        found[..., part] = vectors
        return found

    def _ahead(self, right: Array, going: Array) -> Array:
        """P v of each lag's own rows v, (G, P, n, c), over 2**exponent."""
        count, n = right.shape[1:3]
        x, exponents = np.zeros((count, 0, self._size)), np.zeros((count, 0), np.int64)
        joining = {
            self.lags[lag]: self._among_all(rows, self._columns)
            for lag, rows in zip(going, right, strict=True)
        }
        for lag in range(max(joining), 0, -1):
            if lag in joining:
                x = np.concatenate([x, joining[lag]], axis=1)
                exponents = np.concatenate([exponents, np.zeros((count, n), np.int64)], axis=1)
            x, exponents = _near_one(self._steps[lag - 1].back(x), exponents)
        shape = (count, len(going), n)
        x, exponents = x[..., self._rows].reshape(*shape, -1)[:, ::-1], exponents.reshape(shape)[:, ::-1]
        scale = exponents.swapaxes(0, 1) - self._exponent[going, :, None]
        return np.asarray(np.ldexp(x.swapaxes(0, 1), scale[..., None]))

    def _images(self, left: Array) -> Array:
        """(L, P, n, m) at all lags of combinations (P, n, r), over 2**exponent."""
        y, exponents, found = self._among_all(left, self._rows), np.zeros(left.shape[:2], np.int64), []
        for lag, step in enumerate(self._steps[: self.lags[-1]], 1):
            new = np.zeros_like(y)
            step.times(y, new)
            y, exponents = _near_one(new, exponents)
            if lag in self.lags:
                scale = exponents - self._exponent[self.lags.index(lag), :, None]
                found.append(np.ldexp(y, scale[..., None]))
        return np.stack(found)


def _near_one(vectors: Array, exponents: Array) -> tuple[Array, Array]:
    """Vectors (P, n, m) over powers of two, if they need it, and what these are with others."""
    largest = np.abs(vectors).max(axis=2)
    if largest.min() > RANGE[0] and largest.max() < RANGE[1]:
        return vectors, exponents
    more = np.frexp(largest)[1].astype(np.int64)
    return np.ldexp(vectors, -more[..., None]), exponents + more
