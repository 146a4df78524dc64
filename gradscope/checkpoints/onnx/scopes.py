"""The graphs of an ONNX model: a body sees the names around it, a function what it is called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

_INT64, _FEW = 7, 8  # of TensorProto.DataType; axes of an array


@dataclass(eq=False)
class Scope:
    """A graph, and what its names stand for.

    graph : of the model, of a body or of a function; around : what it stands in, None of the model's own.
    bound : of a function, the caller's name of each input, None of others.
    given : of a function, the attributes that it is called with.
    place : what comes before the names of its layers; when : what must be so for it to run, in sentences.
    again : whether it is in the body of a loop.
    """

    graph: Any
    around: Scope | None = None
    bound: Mapping[str, str] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    when: tuple[str, ...] = ()
    again: bool = False
    depth: int = 0

    @property
    def in_function(self) -> bool:
        """Whether it is the scope of a function, or in one."""
        return self.bound is not None or (self.around is not None and self.around.in_function)

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """The constants that the graph holds itself."""
        return {tensor.name: tensor for tensor in stored(self.graph)}

    @cached_property
    def makers(self) -> dict[str, Any]:
        """The node that makes each value."""
        return {name: node for node in self.graph.node for name in node.output if name}

    @cached_property
    def inputs(self) -> set[str]:
        """The names of what the graph is given."""
        return {value if isinstance(value, str) else value.name for value in self.graph.input}

    def find(self, name: str) -> tuple[Scope, str]:
        """The scope in which a name is given a meaning, and the name that it has there."""
        scope = self
        while name not in scope.tensors and name not in scope.makers:
            if scope.around is None or (scope.bound is None and name in scope.inputs):
                break
            if scope.bound is not None:
                if name not in scope.bound:
                    break
                name = scope.bound[name]
            scope = scope.around
        return scope, name

    @cached_property
    def _declared(self) -> dict[str, int]:
        """The last axis of values that the graph says the shapes of, where that is a number."""
        values = (*self.graph.input, *self.graph.value_info) if self.bound is None else ()
        dims = {value.name: value.type.tensor_type.shape.dim for value in values}
        return {name: shape[-1].dim_value for name, shape in dims.items() if shape and shape[-1].dim_value}

    def last_axis(self, name: str) -> int | None:
        """The last axis of a value that is computed or given, None where the file does not say it."""
        where, own = self.find(name)
        return where._declared.get(own)

    def tensor(self, name: str) -> Any:
        """The constant of this name, None where it is computed or given."""
        where, own = self.find(name)
        return where.tensors.get(own)

    def is_constant(self, name: str) -> bool:
        """Whether a name stands for a constant itself, and not for what operators make of some."""
        where, own = self.find(name)
        node = where.makers.get(own)
        return own in where.tensors or (node is not None and node.op_type == "Constant")

    def numbers(self, name: str) -> list[int]:
        """The few whole numbers that a constant holds, none if it holds others."""
        where, own = self.find(name)
        tensor, node = where.tensors.get(own), where.makers.get(own)
        if tensor is None:
            given = where.attributes(node) if node is not None and node.op_type == "Constant" else {}
            if "value_int" in given:
                return [int(given["value_int"].i)]
            return list(given["value_ints"].ints[:_FEW]) if "value_ints" in given else []
        if tensor.data_type != _INT64 or len(tensor.raw_data) > 8 * _FEW:
            return []
        whole = tensor.int64_data or np.frombuffer(tensor.raw_data, "<i8")
        return [int(number) for number in whole[:_FEW]]

    def attributes(self, node: Any) -> dict[str, Any]:
        """The attributes of a node by name, those of a function as it is called."""
        told = attributes(node)
        names = {name: one.ref_attr_name for name, one in told.items() if one.ref_attr_name}
        told |= {name: self.given[ref] for name, ref in names.items() if ref in self.given}
        return {name: one for name, one in told.items() if name not in names or names[name] in self.given}

    def body(self, graph: Any, place: str, when: str, *, again: bool) -> Scope:
        """The scope of a body in this one."""
        return Scope(
            graph,
            self,
            None,
            self.given,
            f"{self.place}{place}/",
            (*self.when, when),
            again or self.again,
            self.depth + 1,
        )

    def call(self, function: Any, node: Any, place: str) -> Scope:
        """The scope of a function that is called in this one."""
        given = {one.name: one for one in function.attribute_proto} | self.attributes(node)
        bound = dict(zip(function.input, node.input, strict=False))
        place = f"{self.place}{place}/"
        return Scope(function, self, bound, given, place, self.when, self.again, self.depth + 1)


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node by name."""
    return {attribute.name: attribute for attribute in node.attribute}


def stored(graph: Any) -> Iterator[Any]:
    """The tensors in a graph by the names of the values that they are."""
    yield from getattr(graph, "initializer", ())
    for node in graph.node:
        if node.op_type == "Constant" and len(node.output) == 1:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.HasField("t"):
                    attribute.t.name = node.output[0]
                    yield attribute.t


def bodies(node: Any) -> Iterator[tuple[str, Any]]:
    """The graphs that a node runs, by the names of its attributes."""
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            yield attribute.name, graph


def every_graph(graph: Any) -> Iterator[Any]:
    """A graph and all bodies in it."""
    waiting = [graph]
    while waiting:
        yield (one := waiting.pop())
        waiting += [body for node in one.node for _, body in bodies(node)]
