"""What the values in a model's graph are made of: which layers a recurrent layer reads, and what else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# To put a value beside itself, and the result beside itself, and so on, doubles it each time.
_MOST = 256
# Names that are listed.
_MOST_NAMES = 8


@dataclass(frozen=True)
class Mask:
    """At which steps layers leave their state as it is.

    kind : "ids" where a token is ``value``, "features" where all features are, "" where something else in
        the model tells; by : the layer that makes the mask; of : the root of the value that tells.
    dtype : in which features are compared.
    """

    kind: str = ""
    value: float = 0.0
    by: str = ""
    of: str = ""
    dtype: str = "float32"

    def __str__(self) -> str:
        by = f"mask of {self.by}" if self.by else "mask"
        if not self.kind:
            return f"steps that other parts of the model tell leave the state as it is ({by})"
        where = f"of token {self.value:g}" if self.kind == "ids" else f"whose features are all {self.value:g}"
        return f"steps {where} leave the state as it is ({by})"


@dataclass(frozen=True)
class Signal:
    """A value in the graph of a model.

    layers : the recurrent layers whose outputs, side by side, it is; () if it has gone through none, None
        if something else has been done to their outputs since.
    root : the value before any recurrent layer that it was made from; depth : recurrent layers on the way.
    front : whether something that gradscope does not compute made the root of what the model is given.
    table : the embedding whose rows the root is, "" of none, None where that is not known; ids : the root of
        what that embedding reads.
    mask : of the layers that read it; tells : the mask that this value is itself.
    training : layers on its way, since the root or the last recurrent layers, that do something in training.
    """

    layers: tuple[str, ...] | None
    root: str = ""
    depth: int = 0
    front: bool = False
    table: str | None = ""
    ids: str = ""
    mask: Mask | None = None
    tells: Mask | None = None
    training: tuple[str, ...] = ()

    def through(self, layer: str) -> Signal:
        """What a recurrent layer that reads this puts out."""
        return replace(self, layers=(layer,), depth=self.depth + 1, training=())

    def trained(self, layer: str) -> Signal:
        """What a layer puts out that leaves it as it is, but for training."""
        return replace(self, training=(*self.training, layer)[:_MOST_NAMES])

    @property
    def below(self) -> tuple[str, ...] | None:
        """The layers that a layer reads which reads this, as in Layer."""
        return None if self.layers == () and self.front else self.layers

    @property
    def own_mask(self) -> Mask | None:
        """The mask, of kind "" where the root that a user gives does not tell it."""
        if self.mask is None:
            return None
        source = {"ids": self.ids, "features": self.root}.get(self.mask.kind)
        known = source == self.mask.of and self.below is not None
        return replace(self.mask, of="") if known else Mask(by=self.mask.by)


def lost(depth: int = 0, root: str = "", mask: Mask | None = None) -> Signal:
    """A value that can not be told from the outputs of layers."""
    return Signal(None, root, depth, table=None, mask=mask)


def changed(name: str, signals: Sequence[Signal]) -> Signal:
    """What an operation of this name makes of values."""
    mask = next((signal.mask for signal in signals if signal.mask), None)
    if all(signal.layers == () for signal in signals):
        return Signal((), name, front=True, mask=mask)
    return lost(max(signal.depth for signal in signals), name, mask)


def embedded(name: str, ids: Signal) -> Signal:
    """The rows of the table of this name that ``ids`` tell."""
    if ids.layers != () or ids.table:
        return changed(name, [ids])
    return Signal((), f"{name} of {ids.root}" if ids.root else name, table=name, ids=ids.root)


def side_by_side(name: str, signals: Sequence[Signal]) -> Signal:
    """Values one beside the other in their last axis.

    Where they began as different values, there is no one input that would give them all.
    """
    width = sum(len(signal.layers or ()) for signal in signals)
    if len({s.root for s in signals}) != 1 or not all(s.layers for s in signals) or width > _MOST:
        return changed(name, signals)
    layers = tuple(layer for signal in signals for layer in signal.layers or ())
    masks = {signal.mask for signal in signals}
    first = replace(signals[0], mask=signals[0].mask if len(masks) == 1 else Mask(by=name))
    training = tuple(dict.fromkeys(name for signal in signals for name in signal.training))[:_MOST_NAMES]
    return replace(first, layers=layers, depth=max(signal.depth for signal in signals), training=training)
