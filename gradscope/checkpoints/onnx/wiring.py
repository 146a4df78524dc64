"""Which recurrent operators of an ONNX graph read which: their outputs followed through its nodes."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradscope.checkpoints.onnx.scopes import Scope, bodies, every_graph
from gradscope.checkpoints.signals import Signal, changed, embedded, lost, side_by_side
from gradscope.errors import InputError, listed, quoted, shown
from gradscope.formats.budget import Budget

_ONNX = ("", "ai.onnx")
QUANTISED, WITH_ATTENTION = "DynamicQuantizeLSTM", "AttnLSTM"  # of onnxruntime
RECURRENT = {(domain, kind): kind for domain in _ONNX for kind in ("LSTM", "GRU", "RNN")} | {
    ("com.microsoft", QUANTISED): "LSTM",
    ("com.microsoft", WITH_ATTENTION): "LSTM",
}
# W, R, B, sequence_lens, initial_h, initial_c, P follow X among the inputs of an operator.
_INPUTS = {"W": 1, "R": 2, "B": 3, "h0": 5, "c0": 6, "P": 7}
_SCALES = {"W scale": 8, "W zero point": 9, "R scale": 10, "R zero point": 11}
_DEEPEST, _CALL = 32, 64  # functions that call functions; what a call takes, in objects
# What a recurrent operator becomes: a node of some twenty bytes is a layer with a name and a signal.
_OPERATOR = 32
_IDENTITIES = ("Identity", "Dropout")
# What moves the axes of the inputs: that layers take them in another order is no other model.
_TURNS = ("Squeeze", "Transpose", "Unsqueeze")
_FLOATS = (1, 10, 11, 16)  # of TensorProto.DataType
_SIDES = {"forward": ("forward",), "reverse": ("backward",), "bidirectional": ("forward", "backward")}
# The axes of an input of the graph, as it is given: of what is looked up by it the next is its features.
_GIVEN_AXES = "012"
_LONGEST = 100  # characters, of the names that are put before others


@dataclass(frozen=True)
class OnnxOperator:
    """A recurrent operator.

    name : of the node, of its output where that is not unique, or with what it is in; sides : its directions;
    reads : its input; scope : the graph that it is in; time_major : whether the graph is given time first,
    None where that is not known.
    """

    node: Any
    name: str
    scope: Scope
    sides: tuple[str, ...] = ()
    reads: Signal = field(default_factory=lost)
    time_major: bool | None = None

    @property
    def kind(self) -> str:
        """LSTM, GRU or RNN."""
        return RECURRENT[self.node.domain, self.node.op_type]

    @property
    def inputs(self) -> dict[str, str]:
        """The names of its weights and states, and what they are."""
        places, given = _INPUTS | (_SCALES if self.node.op_type == QUANTISED else {}), self.node.input
        return {role: given[k] for role, k in places.items() if len(given) > k and given[k]}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its layers, one per direction."""
        return (self.name,) if len(self.sides) == 1 else tuple(f"{self.name}.{side}" for side in self.sides)


@dataclass(frozen=True)
class _Value:
    """A value in the graph.

    axes : T steps, B sequences, D directions, n units, of recurrent outputs; of what is still an input of the
        graph its axes in their order, by their numbers; "" where they are not known.
    rounded : whether it has been made a whole number, which rows of a table are told by as they are.
    """

    signal: Signal
    axes: str = ""
    rounded: bool = False


_Values = MutableMapping[str, _Value]


def operators(model: Any, budget: Budget) -> list[OnnxOperator]:
    """Every recurrent operator in the order in which they are computed, those of bodies and functions too.

    budget : what to look at the functions anew in every call may take.
    """
    scope = Scope(model.graph)
    inputs = [value for value in model.graph.input if value.name not in scope.tensors]
    # The only input needs no name.
    several = len(inputs) > 1
    values = {
        one.name: _Value(Signal((), one.name if several else ""), _GIVEN_AXES[: _rank(one)]) for one in inputs
    }
    walk = _Walk(model, budget)
    walk.graph(scope, ChainMap(values))
    return walk.found


def _rank(value: Any) -> int:
    """How many axes an input of the graph has, 0 where it does not say or has others than a sequence."""
    count = len(value.type.tensor_type.shape.dim)
    return count if count <= len(_GIVEN_AXES) else 0


class _Walk:
    """Goes through the graphs of a model in the order in which they are computed.

    found : the recurrent operators that it has met.
    """

    def __init__(self, model: Any, budget: Budget) -> None:
        self.found: list[OnnxOperator] = []
        self._budget = budget
        self._functions = _recurrent_functions(model)
        self._count = Counter(
            _called(node) for graph in every_graph(model.graph) for node in graph.node if _recurrent(node)
        )
        self._named = Counter(node.name for node in model.graph.node if _recurrent(node))

    def graph(self, scope: Scope, values: _Values) -> None:
        """The operators of a graph; what its nodes make is put with the values."""
        if scope.depth > _DEEPEST:
            raise InputError(f"has functions and bodies {scope.depth} deep, expected a model that ends")
        for node in scope.graph.node:
            given = [
                values.get(name, _Value(lost(0, name)))
                for name in node.input
                if name and not scope.is_constant(name)
            ]
            if _recurrent(node):
                self._budget.draw(_OPERATOR)
                self.found.append(_operator(node, self._name(scope, node), scope, values))
                values.update(_outputs(self.found[-1]))
            elif _key(node) in self._functions:
                self._call(scope, node, values)
            elif node.op_type != "Constant" and node.output:
                if self._bodies(scope, node, values):
                    given.append(_Value(lost()))  # what else a body reads, and whether it recurs
                signals = [value.signal for value in given]
                values.update({name: _Value(changed(name, signals)) for name in node.output})
                values[node.output[0]] = _followed(node, given, scope) or values[node.output[0]]

    def _call(self, scope: Scope, node: Any, values: _Values) -> None:
        """What a function with recurrent operators makes of its inputs."""
        function = self._functions[_key(node)]
        self._budget.draw(_CALL + 8 * len(function.node))
        inner: _Values = ChainMap(
            {
                formal: values.get(name, _Value(lost(0, name)))
                for formal, name in zip(function.input, node.input, strict=False)
                if not scope.is_constant(name)
            }
        )
        self.graph(scope.call(function, node, _called(node)[:_LONGEST]), inner)
        for name, formal in zip(node.output, function.output, strict=False):
            values[name] = inner.get(formal, _Value(lost(0, name)))

    def _bodies(self, scope: Scope, node: Any, values: _Values) -> bool:
        """The bodies that a node runs; False if it has none."""
        found = False
        for name, graph in bodies(node):
            found, place, again = True, f"{_called(node)[:_LONGEST]}/{name[:_LONGEST]}", node.op_type != "If"
            when = f"{shown(name)} of {shown(_called(node))}, an {node.op_type}, runs"
            if again:
                when = (
                    f"every pass of {shown(_called(node))}, a {node.op_type}, is a step of what it is given"
                )
            inner = {value.name: _Value(lost(0, value.name)) for value in graph.input}
            # In a loop what stands outside is the same in every pass, and no sequence.
            outside: list[_Values] = [] if again else [values]
            self.graph(scope.body(graph, place, when, again=again), ChainMap(inner, *outside))
        return found

    def _name(self, scope: Scope, node: Any) -> str:
        """A name that no other has, as short as may be."""
        called = _called(node)
        if scope.around is None:
            return _called(node, by_output=self._named[node.name] > 1)
        return called if not scope.in_function and self._count[called] == 1 else scope.place + called


def _recurrent_functions(model: Any) -> dict[tuple[str, str], Any]:
    """The functions that have recurrent operators, or call such functions."""
    functions = {(f.domain, f.name): f for f in model.functions}
    callers: dict[tuple[str, str], list[tuple[str, str]]] = {}
    waiting = []
    for key, function in functions.items():
        nodes = [node for graph in every_graph(function) for node in graph.node]
        if any(map(_recurrent, nodes)):
            waiting.append(key)
        for called in {_key(node) for node in nodes} & functions.keys():
            callers.setdefault(called, []).append(key)
    found = dict[tuple[str, str], Any]()
    while waiting:
        if (key := waiting.pop()) not in found:
            found[key] = functions[key]
            waiting += callers.get(key, [])
    return found


def _key(node: Any) -> tuple[str, str]:
    return node.domain, node.op_type


def _recurrent(node: Any) -> bool:
    return _key(node) in RECURRENT


def _called(node: Any, *, by_output: bool = False) -> str:
    outputs: list[str] = [name for name in node.output if name]
    return str("" if by_output else node.name) or next(iter(outputs), "")


def _operator(node: Any, name: str, scope: Scope, values: Mapping[str, _Value]) -> OnnxOperator:
    given = scope.attributes(node)
    direction = given["direction"].s.decode("utf-8", "replace") if "direction" in given else "forward"
    if direction not in _SIDES:
        raise InputError(f"{shown(name)}: has direction {quoted(direction)}, expected {listed([*_SIDES])}")
    source = node.input[0] if node.input else ""
    x = values.get(source, _Value(lost(0, source)))
    turned, as_given = _batch_first(given), x.signal.layers == ()
    in_order = as_given or x.axes in ("", "BTn" if turned else "TBn")
    reads = x.signal if in_order else lost(x.signal.depth, source)
    known = as_given and set(x.axes) == set(_GIVEN_AXES)
    time_major = (x.axes[turned] == "0") if known else None
    return OnnxOperator(node, name, scope, _SIDES[direction], reads, time_major)


def _outputs(operator: OnnxOperator) -> dict[str, _Value]:
    """Y, which has every step; what else there is are last states."""
    reads, (y, *rest) = operator.reads, list(operator.node.output) or [""]
    made = replace(reads, layers=operator.layers, depth=reads.depth + 1)
    values = dict.fromkeys(rest, _Value(lost(made.depth)))
    axes = "BTDn" if _batch_first(operator.scope.attributes(operator.node)) else "TDBn"
    return values | {y: _Value(made, axes)}


def _batch_first(given: Mapping[str, Any]) -> bool:
    return "layout" in given and bool(given["layout"].i)


def _followed(node: Any, given: Sequence[_Value], scope: Scope) -> _Value | None:
    """The first output of a node that leaves the numbers as they are, None of one that may not."""
    if node.domain not in _ONNX or not given:
        return None
    options = scope.attributes(node)
    if node.op_type == "Cast":
        return _cast(given[0], options)
    if node.op_type in _IDENTITIES:
        return given[0]
    if node.op_type in _TURNS and given[0].signal.layers == ():
        return replace(given[0], axes=_turned(node, given[0].axes, options))
    if node.op_type == "Gather" and _is_table(scope.tensor(node.input[0]), options):
        looked_up = given[0].axes and given[0].axes + _GIVEN_AXES[len(given[0].axes) :][:1]
        return _Value(embedded(node.input[0], given[0].signal), looked_up)
    if node.op_type == "Concat":
        axes = {value.axes for value in given}
        last = options["axis"].i in (-1, 2) and len(given) == len(node.input)
        if not last or len(axes) > 1 or not axes <= {"TBn", "BTn"}:
            return None
        return replace(given[0], signal=side_by_side(_called(node), [value.signal for value in given]))
    axes_now = _moved(node, given[0], scope)
    return replace(given[0], axes=axes_now) if axes_now else None


def _cast(value: _Value, options: Mapping[str, Any]) -> _Value | None:
    """A value in another type: what was made whole numbers and is a float again is not what it was."""
    if "to" not in options or options["to"].i not in _FLOATS:
        return replace(value, rounded=True)
    return None if value.rounded else value


def _turned(node: Any, axes: str, options: Mapping[str, Any]) -> str:
    """The axes of an input of the graph after its axes were moved, "" where that does not tell."""
    order = list(options["perm"].ints) if "perm" in options else [*range(len(axes))][::-1]
    whole = node.op_type == "Transpose" and sorted(order) == [*range(len(axes))]
    return "".join(axes[k] for k in order) if whole else ""


def _is_table(table: Any, options: Mapping[str, Any]) -> bool:
    """Whether these are rows, one for each token."""
    rows = "axis" not in options or options["axis"].i == 0
    return table is not None and table.data_type in _FLOATS and len(table.dims) == 2 and rows


def _moved(node: Any, value: _Value, scope: Scope) -> str:
    """The axes after a node that only moves the numbers, "" for one that may not, or elsewhere."""
    axes, options = value.axes, scope.attributes(node)
    one = len(value.signal.layers or ()) == 1
    if node.op_type == "Transpose" and "perm" in options:
        order = list(options["perm"].ints)
        return "".join(axes[k] for k in order) if sorted(order) == [*range(len(axes))] else ""
    if "D" not in axes:
        return ""
    if node.op_type == "Squeeze" and one:
        given = options["axes"].ints if "axes" in options else scope.numbers(node.input[-1])
        return axes.replace("D", "") if list(given) in ([axes.index("D")], [axes.index("D") - 4]) else ""
    if node.op_type == "Reshape" and (one or axes.endswith("Dn")):
        # As the exporters put two directions side by side. A shape that is computed is taken to be that.
        three = not scope.is_constant(node.input[1]) or len(scope.numbers(node.input[1])) == 3
        return axes.replace("D", "") if three else ""
    return ""
