"""What the values in a model's graph are made of: which layers a recurrent layer reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# To put a value beside itself, and the result beside itself, and so on, doubles it each time.
_MOST = 256


@dataclass(frozen=True)
class Signal:
    """A value in the graph of a model.

    layers : the recurrent layers whose outputs, side by side, it is; () if it has gone through none, None
        if something else has been done to their outputs since.
    root : the value before any recurrent layer that it was made from; depth : recurrent layers on the way.
    """

    layers: tuple[str, ...] | None
    root: str = ""
    depth: int = 0

    def through(self, layer: str) -> Signal:
        """What a recurrent layer that reads this puts out."""
        return Signal((layer,), self.root, self.depth + 1)


def lost(depth: int = 0) -> Signal:
    """A value that can not be told from the outputs of layers."""
    return Signal(None, depth=depth)


def changed(name: str, signals: Sequence[Signal]) -> Signal:
    """What an operation of this name makes of values."""
    if all(signal.layers == () for signal in signals):
        return Signal((), name)
    return lost(max(signal.depth for signal in signals))


def side_by_side(name: str, signals: Sequence[Signal]) -> Signal:
    """Values one beside the other in their last axis.

    Where they began as different values, there is no one input that would give them all.
    """
    width = sum(len(signal.layers or ()) for signal in signals)
    if len({s.root for s in signals}) != 1 or not all(s.layers for s in signals) or width > _MOST:
        return changed(name, signals)
    layers = tuple(layer for signal in signals for layer in signal.layers or ())
    return Signal(layers, signals[0].root, max(signal.depth for signal in signals))
