"""Which recurrent operators of an ONNX graph read which: their outputs followed through its nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradscope.checkpoints.signals import Signal, changed, embedded, lost, side_by_side

RECURRENT = ("LSTM", "GRU", "RNN")
_IDENTITIES = ("Identity", "Dropout", "Cast")
# What moves the axes of the inputs: that layers take them in another order is no other model.
_TURNS = ("Squeeze", "Transpose", "Unsqueeze")
_INT64, _FLOATS = 7, (1, 10, 11, 16)  # of TensorProto.DataType
_LONGEST = 100  # characters, of the names that are put before others


@dataclass(frozen=True)
class OnnxOperator:
    """A recurrent operator.

    name : of the node, or of its output where that is not unique; sides : its directions; reads : its input.
    inside : the operator or function in whose body it is, "" in the main graph.
    """

    node: Any
    name: str
    sides: tuple[str, ...] = ()
    reads: Signal = field(default_factory=lost)
    inside: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its layers, one per direction."""
        return (self.name,) if len(self.sides) == 1 else tuple(f"{self.name}.{side}" for side in self.sides)


@dataclass(frozen=True)
class _Value:
    """A value in the graph; axes : T steps, B sequences, D directions, n units, of recurrent outputs."""

    signal: Signal
    axes: str = ""


def operators(model: Any) -> list[OnnxOperator]:
    """Every recurrent operator, those in bodies and functions at the end."""
    graph = model.graph
    count = Counter(node.name for node in graph.node if _recurrent(node))
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {
        node.output[0]: _tensor(node) for node in graph.node if node.op_type == "Constant" and node.output
    }
    inputs = [value.name for value in graph.input if value.name not in stored]
    # The only input needs no name.
    values = {name: _Value(Signal((), name if len(inputs) > 1 else "")) for name in inputs}
    found = []
    hidden = any(_recurrent(node) for function in model.functions for node in function.node)
    for node in graph.node:  # in the order in which they are computed
        given = [values.get(name, _Value(lost())) for name in node.input if name and name not in stored]
        if _has_body(node) or (hidden and node.domain not in ("", "ai.onnx")):
            given.append(_Value(lost()))  # what else a body reads, and whether it recurs, is not looked for
        if _recurrent(node):
            found.append(_operator(node, _called(node, by_output=count[node.name] > 1), values))
            values |= _outputs(found[-1])
        elif node.op_type != "Constant" and node.output:
            values |= {name: _Value(changed(name, [v.signal for v in given])) for name in node.output}
            values[node.output[0]] = _followed(node, given, stored) or values[node.output[0]]
    return found + [inner for node in graph.node for inner in _in_bodies(node)] + list(_in_functions(model))


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node by name."""
    return {attribute.name: attribute for attribute in node.attribute}


def _recurrent(node: Any) -> bool:
    return node.op_type in RECURRENT and node.domain in ("", "ai.onnx")


def _has_body(node: Any) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _called(node: Any, *, by_output: bool = False) -> str:
    outputs: list[str] = [name for name in node.output if name]
    return str("" if by_output else node.name) or next(iter(outputs), "")


def _operator(node: Any, name: str, values: Mapping[str, _Value]) -> OnnxOperator:
    given = attributes(node)
    direction = given["direction"].s.decode() if "direction" in given else "forward"
    sides = {"bidirectional": ("forward", "backward"), "reverse": ("backward",)}.get(direction, ("forward",))
    source = node.input[0] if node.input else ""
    x = values.get(source, _Value(lost()))
    expected = "BTn" if _batch_first(node) else "TBn"
    in_order = x.axes in ("", expected)
    return OnnxOperator(node, name, sides, x.signal if in_order else lost(x.signal.depth, source))


def _outputs(operator: OnnxOperator) -> dict[str, _Value]:
    """Y, which has every step; what else there is are last states."""
    reads, (y, *rest) = operator.reads, list(operator.node.output) or [""]
    made = replace(reads, layers=operator.layers, depth=reads.depth + 1)
    values = dict.fromkeys(rest, _Value(lost(made.depth)))
    return values | {y: _Value(made, "BTDn" if _batch_first(operator.node) else "TDBn")}


def _batch_first(node: Any) -> bool:
    given = attributes(node)
    return "layout" in given and bool(given["layout"].i)


def _followed(node: Any, given: Sequence[_Value], stored: Mapping[str, Any]) -> _Value | None:
    """The first output of a node that leaves the numbers as they are, None of one that may not."""
    if node.domain not in ("", "ai.onnx") or not given:
        return None
    if node.op_type in _IDENTITIES or (node.op_type in _TURNS and given[0].signal.layers == ()):
        return given[0]
    if node.op_type == "Gather" and _is_table(stored.get(node.input[0]), attributes(node)):
        return _Value(embedded(node.input[0], given[0].signal))
    if node.op_type == "Concat":
        axes = {value.axes for value in given}
        last = attributes(node)["axis"].i in (-1, 2) and len(given) == len(node.input)
        if not last or len(axes) > 1 or not axes <= {"TBn", "BTn"}:
            return None
        return replace(given[0], signal=side_by_side(_called(node), [value.signal for value in given]))
    axes_now = _moved(node, given[0], stored)
    return replace(given[0], axes=axes_now) if axes_now else None


def _is_table(table: Any, options: Mapping[str, Any]) -> bool:
    """Whether these are rows, one for each token."""
    rows = "axis" not in options or options["axis"].i == 0
    return table is not None and table.data_type in _FLOATS and len(table.dims) == 2 and rows


def _moved(node: Any, value: _Value, stored: Mapping[str, Any]) -> str:
    """The axes after a node that only moves the numbers, "" for one that may not, or elsewhere."""
    axes, options = value.axes, attributes(node)
    one = len(value.signal.layers or ()) == 1
    if node.op_type == "Transpose" and "perm" in options:
        order = list(options["perm"].ints)
        return "".join(axes[k] for k in order) if sorted(order) == [*range(len(axes))] else ""
    if "D" not in axes:
        return ""
    if node.op_type == "Squeeze" and one:
        given = options["axes"].ints if "axes" in options else _numbers(stored.get(node.input[-1]))
        return axes.replace("D", "") if list(given) in ([axes.index("D")], [axes.index("D") - 4]) else ""
    if node.op_type == "Reshape" and (one or axes.endswith("Dn")):
        # As the exporters put two directions side by side. A shape that is computed is taken to be that.
        three = node.input[1] not in stored or len(_numbers(stored[node.input[1]])) == 3
        return axes.replace("D", "") if three else ""
    return ""


def _tensor(node: Any) -> Any:
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _numbers(tensor: Any) -> list[int]:
    """The few whole numbers that a constant holds, none if it holds others."""
    if tensor is None or tensor.data_type != _INT64 or len(tensor.raw_data) > 64:
        return []
    whole = tensor.int64_data or np.frombuffer(tensor.raw_data, "<i8")
    return [int(number) for number in whole[:8]]


def _in_bodies(node: Any) -> Iterator[OnnxOperator]:
    """The recurrent operators in the graphs that If, Loop and Scan run."""
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            for inner in graph.node:
                place = f"{_called(node)[:_LONGEST]}/{attribute.name[:_LONGEST]}"
                if _recurrent(inner):
                    yield OnnxOperator(inner, f"{place}/{_called(inner)}", inside=node.op_type)
                yield from (replace(o, name=f"{place}/{o.name}") for o in _in_bodies(inner))


def _in_functions(model: Any) -> Iterator[OnnxOperator]:
    for function in model.functions:
        for node in filter(_recurrent, function.node):
            yield OnnxOperator(node, f"{function.name[:_LONGEST]}/{_called(node)}", inside="a function")
