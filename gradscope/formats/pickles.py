"""A pickle as plain data: nothing that it names is imported or called.

Of pickle's opcodes these build numbers, strings, lists and dicts; a call that the pickle asks for
becomes a ``Call``, which is only looked at. The standard unpickler, even with its classes restricted,
lets a small file take the machine's memory (a memo index) or hang it (the hash of a nested tuple).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gradscope.errors import InputError, shown

# Ends of the opcodes that put a number or a string on the stack.
_CONSTANTS = (
    *("INT", "INT1", "INT2", "LONG", "LONG1", "LONG4", "FLOAT"),
    *("STRING", "UNICODE", "UNICODE8", "BYTES", "BYTES8"),
)


# A tensor takes some forty; each may make an object of sixty bytes.
_OPCODES = 2**21
_LONGEST_NAME = 1024


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function that the pickle refers to, as ``module.name``."""

    text: str


@dataclass(frozen=True, eq=False)
class Call:
    """A call that the pickle asks for; a persistent reference is a call of ``""``."""

    function: str
    arguments: tuple[Any, ...]


@dataclass
class _Machine:
    """Pickle's stack machine: ``marks`` holds the stacks below each open mark."""

    allow: Callable[[str], bool]
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def name(self, text: str) -> Name:
        if not self.allow(text):
            raise InputError(
                f"holds the Python object {shown(text[:80])}, which is never loaded: expected a state dict, "
                "torch.save(model.state_dict(), 'model.pt')"
            )
        return Name(text)

    def call(self, function: Any, arguments: Any) -> Any:
        text = function.text if isinstance(function, Name) else "?"
        given = arguments if isinstance(arguments, tuple) else ()
        return _ordered(given) if text == "collections.OrderedDict" else Call(text, given)

    def step(self, opcode: str, argument: Any) -> None:  # noqa: C901  # one case per kind of opcode
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                stack.append({"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}.get(opcode, list)())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET":
                items = self.pop_mark()
                made = _pairs(items, {}) if opcode == "DICT" else items
                self.stack.append(tuple(items) if opcode == "TUPLE" else made)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [stack.pop()] if opcode == "APPEND" else self.pop_mark()
                if isinstance(self.stack[-1], list):
                    self.stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if opcode == "SETITEM" else self.pop_mark()
                _pairs(items, self.stack[-1])
            case "GLOBAL":
                stack.append(self.name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self.name(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "BUILD":  # attributes of an object, such as a state dict's _metadata
                stack.pop()
            case "BINPERSID":
                stack.append(Call("", stack.pop()))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case _ if opcode.endswith(_CONSTANTS):
                stack.append(argument)
            case _:
                raise InputError(f"has the pickle opcode {opcode}, which torch.save does not write")


def read_pickle(data: bytes, allow: Callable[[str], bool]) -> Any:
    """What a pickle says, as numbers, strings, lists, tuples, dicts, Name and Call.

    allow : whether ``module.name`` may occur at all; raises InputError where one may not, and any of
    Python's exceptions where the bytes are no pickle.
    """
    machine = _Machine(allow)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name == "STOP":
            break
        if count > _OPCODES:
            raise InputError(f"holds more than {_OPCODES} pickle opcodes")
        machine.step(opcode.name, argument)
    return machine.stack.pop()


def leaves(tree: Any, most: int, deepest: int = 24) -> Iterator[tuple[str, Any]]:
    """What is in nested dicts and lists, each under its keys joined by dots.

    Raises InputError beyond ``most`` of them or ``deepest`` levels: containers that hold one another
    many times over, or themselves, are small in a file and endless to walk.
    """
    waiting, seen = [("", tree, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        seen += 1
        if seen > most or depth > deepest:
            raise InputError(f"nests more than {deepest} deep or holds more than {most} values")
        if isinstance(value, dict):
            items = list(value.items())
        elif isinstance(value, list | tuple):
            items = list(enumerate(value))
        else:
            yield name, value
            continue
        if len(items) > most:
            raise InputError(f"holds more than {most} values")
        waiting += [(joined(name, key), item, depth + 1) for key, item in reversed(items)]


def joined(name: str, key: object) -> str:
    """The name of what is under ``key`` in ``name``; one long key above many others is refused."""
    result = f"{name}.{key}" if name else str(key)
    if len(result) > _LONGEST_NAME:
        raise InputError(f"has a name of more than {_LONGEST_NAME} characters")
    return result


def _pairs(items: list[Any], target: Any) -> Any:
    """Keys and values in turn, into a dict; what is no plain key is of no use to us."""
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str | int | float):
                target[key] = value
    return target


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in arguments[0] if arguments and isinstance(arguments[0], list) else ():
        _pairs(list(pair), made)
    return made
