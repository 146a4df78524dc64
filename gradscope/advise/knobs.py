"""Knobs: what a user can set of a network's parameters, and how a setting is written."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np

from gradscope.cells.notation import is_any_bias, is_recurrent
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, quoted
from gradscope.report.remedies import LEAST_FACTOR, MOST_FACTOR, MOST_SHIFT

Parameters = Mapping[str, Array]
# b_f+=2.3, b_f=3.35, R_z=x0.83, R_*<=1.02
_SETTING = re.compile(r"(?P<name>[^=<+\s]+)\s*(?P<sign>\+=|=x|<=|=)\s*(?P<number>\S+)")
_EXPECTED = "expected b_f+=2.3 (add), b_f=3.35 (set), R_z=x0.83 (scale) or R_*<=1.02 (clip singular values)"
# How far singular values are clipped (of the largest), at most.
LEAST_CLIP = 0.01
# Relative, of a singular value.
_ROUNDED = 1e-9


@dataclass(frozen=True)
class Knob(ABC):
    """Something that can be set of some parameters, by one number u.

    name : what it is called; keys : the parameters that it changes. ``start`` is the u that changes nothing,
    and ``low`` and ``high`` are how far it goes.
    """

    name: str
    keys: tuple[str, ...]
    sign: ClassVar[str]
    start: ClassVar[float] = 0.0

    @abstractmethod
    def changed(self, array: Array, u: float) -> Array:
        """A parameter with the knob at u."""

    def applied(self, parameters: Parameters, u: float) -> dict[str, Array]:
        """All parameters with the knob at u."""
        return {
            name: self.changed(array, u) if name in self.keys else array for name, array in parameters.items()
        }

    @abstractmethod
    def tangent(self, array: Array) -> Array:
        """How a parameter changes with u, where nothing is changed yet."""

    @abstractmethod
    def span(self, parameters: Parameters) -> tuple[float, float]:
        """The lowest and the highest u that are tried."""

    def coordinate(self, parameters: Parameters, u: float) -> float:
        """In what the first order is taken, a function of u of slope 1 where nothing is changed yet."""
        return u - self.start

    def at(self, parameters: Parameters, coordinate: float) -> float:
        """The u of a coordinate, infinite beyond the ends of what there is."""
        return self.start + coordinate

    @abstractmethod
    def value(self, parameters: Parameters, u: float) -> float:
        """What it is then, as told."""

    @abstractmethod
    def number(self, u: float) -> float:
        """What stands in the setting."""

    def setting(self, u: float) -> str:
        """How ``repair --knob`` is told."""
        return f"{self.name}{self.sign}{self.number(u):.6g}"

    @abstractmethod
    def words(self, u: float) -> str:
        """The setting for people."""


@dataclass(frozen=True)
class Shift(Knob):
    """Add u to every entry of the biases of gates that hold the state.

    The gain of what they hold is sigmoid(b)^T: the first order is taken in log sigmoid(b), which saturates.
    """

    sign = "+="

    def changed(self, array: Array, u: float) -> Array:
        """u more of every entry."""
        return array + u

    def tangent(self, array: Array) -> Array:
        """One of every entry."""
        return np.ones_like(array)

    def span(self, parameters: Parameters) -> tuple[float, float]:
        """As far as a bias is shifted, to both sides."""
        return -MOST_SHIFT, MOST_SHIFT

    def coordinate(self, parameters: Parameters, u: float) -> float:
        """How much log sigmoid(b) grows, in units of the bias as it is."""
        bias = self.value(parameters, 0.0)
        return float(np.logaddexp(0.0, -bias) - np.logaddexp(0.0, -bias - u)) * self._per_log(bias)

    def at(self, parameters: Parameters, coordinate: float) -> float:
        """The u by which it grows as much; infinite where a gate that is open would not be enough."""
        bias = self.value(parameters, 0.0)
        loss = float(np.logaddexp(0.0, -bias)) - coordinate / self._per_log(bias)  # -log sigmoid(bias + u)
        return math.inf if loss <= 0 else -loss - math.log(-math.expm1(-loss)) - bias

    @staticmethod
    def _per_log(bias: float) -> float:
        """d bias / d log sigmoid(bias)."""
        return 1 + math.exp(min(bias, 700.0))

    def value(self, parameters: Parameters, u: float) -> float:
        """The mean bias."""
        return float(np.mean([parameters[key].mean() for key in self.keys])) + u

    def number(self, u: float) -> float:
        """What is added."""
        return u

    def words(self, u: float) -> str:
        """``b_f +2.3``."""
        return f"{self.name} {u:+.3g}"


@dataclass(frozen=True)
class Scale(Knob):
    """Multiply some matrices by e^u."""

    sign = "=x"

    def changed(self, array: Array, u: float) -> Array:
        """The matrix times e^u."""
        return array * math.exp(u)

    def tangent(self, array: Array) -> Array:
        """The matrix itself."""
        return array

    def span(self, parameters: Parameters) -> tuple[float, float]:
        """Logarithms of the least and the largest factor."""
        return math.log(LEAST_FACTOR), math.log(MOST_FACTOR)

    def value(self, parameters: Parameters, u: float) -> float:
        """The factor."""
        return math.exp(u)

    def number(self, u: float) -> float:
        """The factor."""
        return math.exp(u)

    def words(self, u: float) -> str:
        """``R_z x 0.83``."""
        return f"{self.name} x {math.exp(u):.3g}"


@dataclass(frozen=True)
class SpectralClip(Knob):
    """Clip the singular values of some matrices: R <- U min(S, s) V^T, for s = e^-u of the largest of all.

    A vanilla RNN of slopes at most gamma vanishes for sure where sigma_1(R) < 1 / gamma (Pascanu, Mikolov and
    Bengio 2013, arXiv 1211.5063).
    """

    largest: float
    sign = "<="

    def changed(self, array: Array, u: float) -> Array:
        """With no singular value above e^u of the largest of all."""
        return spectrally_clipped(array, self.number(u)) if u else array

    def tangent(self, array: Array) -> Array:
        """Of the largest singular value alone."""
        if array.ndim != 2:
            return np.where(np.abs(array) >= self.largest, array, 0.0)
        left, values, right = np.linalg.svd(array, full_matrices=False)
        if values[0] < self.largest * (1 - _ROUNDED):
            return np.zeros_like(array)
        return np.asarray(values[0] * np.outer(left[:, 0], right[0]))

    def span(self, parameters: Parameters) -> tuple[float, float]:
        """From the least that is left to all of it, as logarithms."""
        return math.log(LEAST_CLIP), 0.0

    def value(self, parameters: Parameters, u: float) -> float:
        """The largest singular value that is left."""
        return self.number(u)

    def number(self, u: float) -> float:
        """The same."""
        return self.largest * math.exp(u)

    def words(self, u: float) -> str:
        """``R_* clipped at 1.02``."""
        return f"{self.name.removeprefix('clip ')} clipped at {self.number(u):.3g}"


def spectrally_clipped(matrix: Array, most: float) -> Array:
    """The nearest matrix, in the Frobenius norm, none of whose singular values is above ``most``."""
    if matrix.ndim != 2:  # a diagonal one
        return np.clip(matrix, -most, most)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return matrix if values[0] <= most else (left * np.minimum(values, most)) @ right


def largest_singular_value(parameters: Parameters, keys: Iterable[str]) -> float:
    """Of all of these matrices."""
    return max(
        float(
            np.linalg.norm(parameters[key], 2) if parameters[key].ndim == 2 else np.abs(parameters[key]).max()
        )
        for key in keys
    )


@dataclass(frozen=True)
class KnobSetting:
    """A knob's setting as it is written: the parameters that patterns (a,b) name, and how they are set."""

    pattern: str
    sign: str
    number: float

    @classmethod
    def parse(cls, text: str) -> KnobSetting:
        """From such as ``b_f+=2.3``; raises InputError."""
        match = _SETTING.fullmatch(text.strip()) if isinstance(text, str) else None
        try:
            number = float(match["number"]) if match else math.nan
        except ValueError:
            number = math.nan
        if match is None or not match["name"] or not math.isfinite(number):
            raise InputError(f"--knob is {quoted(text)}, {_EXPECTED}")
        if match["sign"] == "<=" and number <= 0:
            raise InputError(f"--knob is {quoted(text)}: clip at a positive number")
        return cls(match["name"], match["sign"], number)

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether a text says how to set something, and is no name alone."""
        return not isinstance(text, str) or "=" in text

    def __str__(self) -> str:
        return f"{self.pattern}{self.sign}{self.number:.12g}"

    def names(self, key: str) -> bool:
        """Whether it is about this parameter; R_* is about all recurrent matrices, R of a plain RNN too."""
        patterns = self.pattern.split(",")
        patterns += [pattern.removesuffix("_*") for pattern in patterns if pattern.endswith("R_*")]
        return any(pattern == key or fnmatchcase(key, pattern) for pattern in patterns)

    def check(self, named: Sequence[str], every: Sequence[str]) -> None:
        """Raise InputError where there is none of what it names, or it cannot be set so.

        named : the keys that it names; every : all that there are, as they are called.
        """
        fits: Callable[[str], bool] = {"+=": is_any_bias, "=": is_any_bias, "<=": is_recurrent}.get(
            self.sign, lambda _: True
        )
        if not named or not all(map(fits, named)):
            ours = [key for key in every if fits(key)]
            raise InputError(f"--knob {self}: expected one of {listed(ours, 12) or 'none: there is none'}")

    def changed(self, array: Array) -> Array:
        """A parameter with this set."""
        if self.sign == "+=":
            return array + self.number
        if self.sign == "=x":
            return array * self.number
        return (
            spectrally_clipped(array, self.number) if self.sign == "<=" else np.full_like(array, self.number)
        )
