"""Steps of PyTorch differentiated by the state before them, by the matrix that it goes through first."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gradscope.checkpoints.derivatives import (
    DIRECT,
    SUM_ROUNDINGS,
    Linearised,
    check_way_back,
    gap,
    halved_rows,
)
from gradscope.checkpoints.torch.products import Product
from gradscope.custom_types import Array
from gradscope.errors import InputError

_CUT_OFF = (
    "puts out a state that does not depend on the one before (it is detached, or computed under no_grad): no "
    "gradient goes from step to step"
)


class Linearising(ABC):
    """Differentiates steps, which are whatever a subclass takes for one.

    axes : of every part of the state, where the sequences are, None of one alone.
    """

    def __init__(self, axes: Sequence[int | None]) -> None:
        self._torch = importlib.import_module("torch")
        self._axes = axes
        self._split = True

    @property
    @abstractmethod
    def rounding(self) -> float:
        """Relative, of what is computed in."""

    @abstractmethod
    def _after(self, step: Any, state: Sequence[Any], *, cut: bool) -> tuple[list[Any], list[Product]]:
        """The state after a step, and the products with matrices on the way; cut : whether these are cut."""

    def _linearised(self, step: Any, state: Sequence[Any]) -> tuple[Sequence[Any], Linearised]:
        """The state after a step, and the step differentiated by that before it."""
        new, _ = self._after(step, state, cut=False)
        if not any(one.requires_grad for one in new):
            raise InputError(_CUT_OFF)
        rows = np.random.default_rng(1).standard_normal(self._joined(new).shape)
        back = partial(self._row, new, state=state)
        whole = back(rows)
        check_way_back(rows, whole, back(halved_rows(rows)), back)
        paths = self._by_path(step, state, partial(self._adds_up, rows, whole)) if self._split else None
        if paths is None:
            self._split = False
            paths = {DIRECT: self._derivatives(new, self._axes, state, self._axes)}
        return new, Linearised(self._joined(state), self._joined(new), paths)

    def _by_path(
        self, step: Any, state: Sequence[Any], adds_up: Callable[[Mapping[str, Array]], bool]
    ) -> dict[str, Array] | None:
        """By the matrix that the state goes through first; None where these do not add up."""
        new, products = self._after(step, state, cut=True)
        batch = len(in_rows(state[0], self._axes[0]))
        axes = [_axis_of(batch, product.made) for product in products]
        if None in axes and batch > 1:
            return None
        reads = [product.read for product in products]
        inputs, all_axes = [*state, *reads], [*self._axes, *axes]
        columns = np.cumsum([0, *(in_rows(t, a).shape[1] for t, a in zip(inputs, all_axes, strict=True))])
        size = int(columns[len(state)])
        direct = self._derivatives(new, self._axes, inputs, all_axes)
        paths = {DIRECT: direct[:, :, :size]}
        onward = {
            k: direct[:, :, columns[len(state) + k] : columns[len(state) + k + 1]] for k in range(len(reads))
        }
        for k in reversed(range(len(products))):
            if not onward[k].any():  # a head's, whatever its size
                continue
            made = self._derivatives([products[k].made], [axes[k]], inputs, all_axes)
            for j in range(k):
                part = made[:, :, columns[len(state) + j] : columns[len(state) + j + 1]]
                onward[j] = onward[j] + onward[k] @ part
            name = products[k].matrix
            paths[name] = paths.get(name, 0.0) + onward[k] @ made[:, :, :size]
        return paths if adds_up(paths) else None

    def _adds_up(self, rows: Array, whole: Array, paths: Mapping[str, Array]) -> bool:
        """Whether random rows through the paths are those through the step as it is, which are whole."""
        return gap(rows, paths, whole) <= SUM_ROUNDINGS * self.rounding

    def _row(self, new: Sequence[Any], rows: Array, state: Sequence[Any]) -> Array:
        """b^T J of every sequence, (B, m)."""
        widths = [in_rows(t, a).shape[1] for t, a in zip(new, self._axes, strict=True)]
        parts = np.split(rows, np.cumsum(widths)[:-1], axis=1)
        outer = [
            out_of_rows(self._torch.as_tensor(part).to(t), t, axis)
            for part, t, axis in zip(parts, new, self._axes, strict=True)
        ]
        live = [(t, o) for t, o in zip(new, outer, strict=True) if t.requires_grad]
        if not live:
            return np.zeros(rows.shape)
        found = self._torch.autograd.grad(
            [t for t, _ in live], state, [o for _, o in live], retain_graph=True, allow_unused=True
        )
        filled = [self._torch.zeros_like(s) if g is None else g for g, s in zip(found, state, strict=True)]
        return self._joined(filled)

    def _derivatives(
        self,
        made: Sequence[Any],
        made_axes: Sequence[int | None],
        by: Sequence[Any],
        axes: Sequence[int | None],
    ) -> Array:
        """d(made)/d(by) of every sequence, (B, rows, columns)."""
        blocks = [[*self._block(one, axis, by, axes)] for one, axis in zip(made, made_axes, strict=True)]
        return np.concatenate([np.concatenate(row, axis=2) for row in blocks], axis=1)

    def _block(self, made: Any, axis: int | None, by: Sequence[Any], axes: Sequence[int | None]) -> Any:
        """d(made)/d(each of by), of every sequence."""
        torch = self._torch
        batch, count = in_rows(made, axis).shape
        if not made.requires_grad:
            return [np.zeros((batch, count, in_rows(t, a).shape[1])) for t, a in zip(by, axes, strict=True)]
        units = torch.eye(count, dtype=made.dtype, device=made.device)
        outer = out_of_rows(units[:, None].expand(count, batch, count), made, axis)
        try:
            found = torch.autograd.grad(
                made, by, outer, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
        except RuntimeError:  # a function of the user's own that knows no vmap
            each = [torch.autograd.grad(made, by, one, retain_graph=True, allow_unused=True) for one in outer]
            found = [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]
        blocks = []
        for grads, tensor, own in zip(found, by, axes, strict=True):
            if grads is None:
                blocks.append(np.zeros((batch, count, in_rows(tensor, own).shape[1])))
            else:
                rows = grads[None] if own is None else grads.movedim(own + 1, 0)
                blocks.append(as_array(rows.reshape(batch, count, -1)))
        return blocks

    def _joined(self, parts: Sequence[Any]) -> Array:
        """(B, m) of the parts of a state."""
        return np.concatenate(
            [as_array(in_rows(t, axis)) for t, axis in zip(parts, self._axes, strict=True)], axis=1
        )


def _axis_of(batch: int, tensor: Any) -> int | None:
    """The first axis of as many as there are sequences."""
    if batch == 1:
        return None
    return next((axis for axis, size in enumerate(tensor.shape) if size == batch), None)


def in_rows(tensor: Any, axis: int | None) -> Any:
    """(B, numbers) of a tensor with the sequences along this axis."""
    if axis is None:
        return tensor.reshape(1, -1)
    moved = tensor.movedim(axis, 0)
    return moved.reshape(moved.shape[0], -1)


def out_of_rows(rows: Any, like: Any, axis: int | None) -> Any:
    """The inverse, in the shape of another tensor; of (..., B, numbers) for several at once."""
    lead = rows.shape[:-2]
    if axis is None:
        return rows.reshape(*lead, *like.shape)
    shape = [like.shape[axis], *(size for k, size in enumerate(like.shape) if k != axis)]
    return rows.reshape(*lead, *shape).movedim(len(lead), len(lead) + axis)


def as_array(tensor: Any) -> Array:
    """The values of a tensor, in float64."""
    return np.asarray(tensor.detach().to("cpu").double())
