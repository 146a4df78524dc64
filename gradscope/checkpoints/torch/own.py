"""Modules of a PyTorch model that are recurrent by what they do: found as they are called."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gradscope.checkpoints.carried import (
    ARGUMENTS,
    BETWEEN,
    KEPT,
    OUTPUT,
    Carried,
    Place,
    StepCall,
    carried,
    leaves,
    placed,
    started,
)
from gradscope.checkpoints.derivatives import Derivatives
from gradscope.checkpoints.torch.calls import reaches
from gradscope.checkpoints.torch.operations import is_tensor
from gradscope.checkpoints.torch.sequence import TorchSequence
from gradscope.checkpoints.torch.steps import TorchSteps, class_of, copied, is_real, kept_by, path_name, same
from gradscope.checkpoints.torch_loops.loop import TorchLoop, loops_of
from gradscope.errors import InputError, listed, quoted, shown

# A parameter that is used so often, and each time on what an earlier use made, may be a recurrent matrix.
_USES = 3
# Roundings that a state may have on its way to the next call: sums of a few parts.
_SUMS = 64
_HELD = (
    "is called step by step, and before call {} the gradient of its state is held back or changed (a detach, "
    "a torch.no_grad, a hook, a Function of its own), which is not in the derivatives of its steps"
)


@dataclass
class Own:
    """What the hooks on a module of the user's own class have noted.

    nodes, edges : of every call the nodes of the graph, and the places in it, of what it was given and put
    out.
    """

    module: Any
    calls: list[StepCall] = field(default_factory=list)
    nodes: list[tuple[dict[Place, Any], dict[Place, Any]]] = field(default_factory=list)
    edges: list[tuple[dict[Place, Any], dict[Place, Any]]] = field(default_factory=list)
    begun: list[tuple[dict[Place, Any], dict[Place, Any]]] = field(default_factory=list)
    begun_edges: list[dict[Place, Any]] = field(default_factory=list)
    copies: dict[tuple[int, int], Any] = field(default_factory=dict)
    problem: str = ""


def owned(model: Any, named: Iterable[str], hooked: Iterable[Any] = ()) -> dict[str, Own]:
    """The modules with parameters that are not of torch's own classes, and those named or hooked.

    The outermost first.
    """
    modules = dict(model.named_modules())
    for name in named:
        if name not in modules:
            others = listed([shown(other) for other in modules if other])
            raise InputError(f"cells names {quoted(name)}, expected modules of the model: {others}")
    some = {id(module) for module in hooked}
    return {
        name: Own(module)
        for name, module in modules.items()
        if name in named or id(module) in some or (_is_own(module) and any(True for _ in module.parameters()))
    }


def _is_own(module: Any) -> bool:
    kinds = [kind for kind in type(module).__mro__ if kind.__module__ != "torch.nn.utils.parametrize"]
    return not kinds[0].__module__.startswith("torch.")


@contextmanager
def overhearing(heard: Mapping[str, Own]) -> Iterator[None]:
    """Within, every call of these modules is noted, with what they keep."""
    handles = []
    try:
        for own in heard.values():
            with suppress(RuntimeError):  # compiled by torch.jit
                handles.append(own.module.register_forward_pre_hook(partial(_before, own), with_kwargs=True))
                handles.append(own.module.register_forward_hook(partial(_after, own), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(own: Own, _: Any, args: Any, keywords: Any) -> None:
    given = dict(leaves((args, keywords), is_tensor, (ARGUMENTS,))) | kept_by(own.module)
    own.begun.append((given, _cloned(own, given)))
    own.begun_edges.append(_edges(given))


def _after(own: Own, _: Any, args: Any, keywords: Any, output: Any) -> None:
    live, given = own.begun.pop()
    made = dict(leaves(output, is_tensor, (OUTPUT,)))
    inputs = {id(tensor) for place, tensor in live.items() if place[0] == ARGUMENTS}
    passed = frozenset(place for place, tensor in made.items() if id(tensor) in inputs)
    made |= kept_by(own.module)
    places = (place[1:] for place in live if place[0] == ARGUMENTS)
    held = placed((args, keywords), dict.fromkeys(places))  # without the tensors, and the graph behind them
    own.calls.append(StepCall(held, given, _cloned(own, made), passed))
    own.nodes.append(({p: t.grad_fn for p, t in live.items()}, {p: t.grad_fn for p, t in made.items()}))
    given_edges = own.begun_edges.pop()
    own.edges.append((given_edges, _edges(made)))


def _edges(tensors: Mapping[Place, Any]) -> dict[Place, Any]:
    """Where tensors are in the graph, before anything changes them in place."""
    edge = importlib.import_module("torch.autograd.graph").get_gradient_edge
    return {p: edge(t) for p, t in tensors.items() if t.requires_grad and is_real(t)}


def _cloned(own: Own, tensors: Mapping[Place, Any]) -> dict[Place, Any]:
    """Copies, before anything changes them in place; of what a module keeps as it is, one."""
    found = {}
    for place, tensor in tensors.items():
        key = (id(tensor), tensor._version)
        if place[0] != KEPT:
            found[place] = tensor.detach().clone()
        else:
            own.copies.setdefault(key, (tensor, tensor.detach().clone()))
            found[place] = own.copies[key][1]
    return found


def recurrent(
    heard: Mapping[str, Own], named: Iterable[str], layered: Collection[str], told: Iterable[Any]
) -> tuple[dict[str, Derivatives], dict[str, str]]:
    """The modules that are called step by step, loops within others, what can be stepped; why others not.

    Of those that are called so the outermost, and of the others the innermost.
    named : those that the user says are recurrent; layered : modules of torch's own kinds; told : modules
    that were recorded and need none of this.
    """
    found, problems = dict[str, Derivatives](), dict[str, str]()
    for name, own in heard.items():
        taken = any(within(name, outer) for outer in found)
        taken |= any(within(other, name) for other in named)
        if len(own.calls) > 1 and (name in named or not taken):
            try:
                found[name] = _steps(own, _changing(own.calls))
            except InputError as error:
                problems[name] = str(error)
    inner = {*layered, *found, *(name for name in problems if feeds_itself(heard[name]))}
    claimed = {id(p) for part in (*told, *(heard[name].module for name in found)) for p in part.parameters()}
    for name, own in reversed([*heard.items()]):
        if not own.calls and name in named:
            problems[name] = "is not called in the forward pass of the batch"
        if len(own.calls) == 1:
            asked = name in layered or name in named
            steady = not any(within(one, name) for one in inner) and _recurs(own, (), matrices=True)
            mine = {id(parameter) for parameter in own.module.parameters()}
            try:
                once = _called_once(name, own, claimed - mine if asked else claimed, layered, asked or steady)
            except InputError as error:
                problems[name] = str(error)
                continue
            found |= once
            for steps in once.values():
                claimed |= steps.claims(own.module) if isinstance(steps, TorchLoop) else mine
                inner.add(name)
    return found, problems


def _called_once(
    name: str, own: Own, claimed: Collection[int], layered: Collection[str], sure: bool
) -> Mapping[str, Derivatives]:
    """The loops within a module, by their names, or the module, which is called step by step.

    claimed : parameters of others; sure : whether it is known to be recurrent. Raises InputError where that
    is seen, and is none of these.
    """
    found, why = _loops(name, own, claimed, sure=sure)
    if name in layered and len(found) == 1:  # it goes by the name of the layer
        return {name: next(iter(found.values()))}
    if found and name not in layered:
        return found
    if sure:
        (call,) = _changing(own.calls)
        module = copied(own.module)
        return {name: TorchSequence(module, class_of(module), call, why)}
    if why:
        raise InputError(why)
    return {}


def _loops(name: str, own: Own, claimed: Collection[int], *, sure: bool) -> tuple[dict[str, TorchLoop], str]:
    """The loops within a module, by their names, and why there is none."""
    sure = sure or _recurs(own, claimed)
    if not sure and all(buffer.ndim < 2 for buffer in own.module.buffers()):
        return {}, ""
    others = [other for other, parameter in own.module.named_parameters() if id(parameter) in claimed]
    try:
        (call,) = _changing(own.calls)
        found = loops_of(own.module, name, call, others)
    except InputError as error:
        return {}, str(error) if sure else ""
    if len(found) == 1:
        return {name: found[0]}, ""
    called = [f"{name}.{_of_module(loop.loop.name)}".lstrip(".") for loop in found]
    twice = {one for one in called if called.count(one) > 1}
    numbers = itertools.count(1)
    called = [f"{one}.{next(numbers)}" if one in twice else one for one in called]
    return dict(zip(called, found, strict=True)), ""


def _of_module(parameter: str) -> str:
    """What a module is called that has one matrix, or the parameter."""
    return path_name(parameter).removesuffix(".weight").removesuffix(".bias")


def within(name: str, outer: str) -> bool:
    """Whether a module is another one, or in it."""
    return outer in ("", name) or name.startswith(f"{outer}.")


def _changing(calls: Sequence[StepCall]) -> list[StepCall]:
    """The calls, of what the module keeps that alone which changes."""
    fixed = {
        place
        for place in {place for call in calls for place in call.made if place[0] == KEPT}
        if all(_unchanged(place, call) for call in calls)
    }
    return [
        replace(
            call,
            given={place: t for place, t in call.given.items() if place not in fixed},
            made={place: t for place, t in call.made.items() if place not in fixed},
        )
        for call in calls
    ]


def _unchanged(place: Place, call: StepCall) -> bool:
    before, after = call.given.get(place), call.made.get(place)
    return before is after or (before is not None and after is not None and same(before, after))


def _steps(own: Own, calls: list[StepCall]) -> TorchSteps:
    """Of calls of which each goes on from the state where the one before ended."""
    torch = importlib.import_module("torch")
    state = carried(calls, same)
    _check_whole(own, calls, state)
    _check_passed_on(own, calls, state)
    reads = [node for given, _ in own.nodes[1:] for p, node in given.items() if p not in state.places]
    makes = [node for _, made in own.nodes[:-1] for node in made.values()]
    fed_back = reaches(filter(None, reads), filter(None, makes))
    first = started(calls, state, torch.zeros_like)
    return TorchSteps(copied(own.module), class_of(own.module), first, state, fed_back=fed_back)


def _check_whole(own: Own, calls: Sequence[StepCall], state: Carried) -> None:
    """Raise InputError where what a call puts out comes back changed, and not as what the module reads."""
    (given, _), (_, made) = own.nodes[1], own.nodes[0]
    rest = [place for place in calls[1].given if place[0] == ARGUMENTS and place not in state.places]
    for place in rest[1:]:
        for source, tensor in calls[0].made.items():
            back = source not in state.sources and tensor.shape == calls[1].given[place].shape
            if (
                back
                and given[place] is not None
                and reaches([given[place]], filter(None, [made.get(source)]))
            ):
                raise InputError(BETWEEN.format(len(calls), "a part of the state is not"))


def _check_passed_on(own: Own, calls: Sequence[StepCall], state: Carried) -> None:
    """Raise InputError where the state is given on as it is and its gradient is not."""
    torch = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(0)
    for number, ((_, made), (given, _)) in enumerate(itertools.pairwise(own.edges), 2):
        for place, part in state.places.items():
            source = state.sources[part]
            if source not in made or place not in calls[number - 1].given:
                continue
            value = calls[number - 1].given[place]
            row, back = torch.randn(value.shape, generator=generator).to(value), None
            if place in given:
                (back,) = torch.autograd.grad(
                    [given[place]], [made[source]], [row], retain_graph=True, allow_unused=True
                )
            if back is None or not torch.allclose(back, row, rtol=0, atol=_SUMS * torch.finfo(row.dtype).eps):
                raise InputError(_HELD.format(number))


def feeds_itself(own: Own) -> bool:
    """Whether what a module is given depends on what it put out at calls before."""
    reads = [node for given, _ in own.nodes[1:] for node in given.values()]
    makes = [node for _, made in own.nodes[:-1] for node in made.values()]
    return reaches(filter(None, reads), filter(None, makes))


def _recurs(own: Own, claimed: Collection[int], *, matrices: bool = False) -> bool:
    """Whether a module uses one of its parameters again on what it made, several times over.

    claimed : ids of parameters that do not count; matrices : whether those alone count.
    """
    uses = _uses(node for _, made in own.nodes for node in made.values() if node is not None)
    for parameter in own.module.parameters():
        mine = uses.get(id(parameter), ())
        before = [other for node in mine for other, _ in node.next_functions if other is not None]
        counts = id(parameter) not in claimed and (parameter.ndim > 1 or not matrices)
        if counts and len(mine) >= _USES and reaches(before, mine):
            return True
    return False


def _uses(nodes: Iterable[Any]) -> dict[int, list[Any]]:
    """{id of a parameter: the nodes where it, or what is made of it alone, meets something else}."""
    above: dict[Any, list[Any]] = {}
    waiting, leaves_of = list(nodes), dict[int, Any]()
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves_of[id(node.variable)] = node
        for other, _ in node.next_functions:
            if other is not None:
                above.setdefault(other, []).append(node)
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
    return {key: list(_meeting(leaf, above)) for key, leaf in leaves_of.items()}


def _meeting(leaf: Any, above: Mapping[Any, Sequence[Any]]) -> Iterator[Any]:
    waiting = [leaf]
    while waiting:
        for node in above.get(waiting.pop(), ()):
            if sum(other is not None for other, _ in node.next_functions) > 1:
                yield node
            else:
                waiting.append(node)
