"""A pickle as plain data: nothing that it names is imported or called.

Of pickle's opcodes these build numbers, strings, lists and dicts; a class, and a call that the pickle
asks for, become a ``Name`` and a ``Call``, which are only looked at. The standard unpickler, even with
its classes restricted, lets a small file take the machine's memory (a memo index) or hang it (the hash
of a nested tuple).
"""

from __future__ import annotations

import codecs
import pickletools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

from gradscope.errors import InputError
from gradscope.formats.budget import Budget

# Ends of the opcodes that put a number or a string on the stack.
_CONSTANTS = (
    *("INT", "INT1", "INT2", "LONG", "LONG1", "LONG4", "FLOAT"),
    *("STRING", "UNICODE", "UNICODE8", "BYTES", "BYTES8", "BYTEARRAY8"),
)


_BY_CODE = {opcode.code: opcode for opcode in pickletools.opcodes}
_LONGEST_NAME = 1024
# Bits of the largest number of ours, the first of the old PyTorch files: to hash a long one takes its length.
_LARGEST = 128


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function that the pickle refers to, as ``module.name``."""

    text: str


@dataclass(eq=False, slots=True)
class Call:
    """A call that the pickle asks for, or an object of a class; a persistent reference is a call of ``""``.

    state : what the object is to be built of; items : the entries of one that is a mapping.
    """

    function: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] | None = None


@dataclass
class _Machine:
    """Pickle's stack machine: ``marks`` holds the stacks below each open mark."""

    budget: Budget
    references: list[Call]
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def call(self, function: Any, arguments: Any) -> Any:
        text = function.text if isinstance(function, Name) else "?"
        given = arguments if isinstance(arguments, tuple) else ()
        if text == "collections.OrderedDict":
            return self.ordered(given)
        if text in ("copyreg._reconstructor", "copy_reg._reconstructor") and given:
            return self.call(given[0], ())
        return Call(text, given)

    def ordered(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        """An OrderedDict of pairs, as Python 2 wrote it."""
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        self.budget.draw(len(pairs))  # each took an opcode, but many dicts may be made of one list
        made: dict[Any, Any] = {}
        for pair in pairs:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                _pairs(pair, made)
        return made

    def reference(self, what: Any) -> Any:
        """What a persistent reference stands for: of a class, which old files keep so, itself."""
        given = what if isinstance(what, tuple) else (what,)
        if given[:1] == ("module",) and len(given) > 1:
            return given[1]
        self.references.append(Call("", given))
        return self.references[-1]

    def named(self, module: Any, attribute: Any) -> Name:
        """The class or function of two strings, of which many may be made."""
        if not (isinstance(module, str) and isinstance(attribute, str)):
            return Name("?")
        parts = module[:_LONGEST_NAME], attribute[:_LONGEST_NAME]
        self.budget.draw(size=sum(map(len, parts)))
        return Name(".".join(parts))

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
                stack.append(_name(argument))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self.named(module, attribute))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                if opcode == "NEWOBJ_EX":  # arguments by name
                    stack.pop()
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "OBJ" | "INST":
                items = self.pop_mark()
                function = _name(argument) if opcode == "INST" else items.pop(0)
                self.stack.append(self.call(function, tuple(items)))
            case "BUILD":  # a dict has such as a state dict's _metadata
                state = stack.pop()
                if isinstance(stack[-1], Call):
                    stack[-1].state = state
            case "POP" | "POP_MARK":
                stack.pop() if opcode == "POP" else self.pop_mark()
            case "BINPERSID":
                stack.append(self.reference(stack.pop()))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case _ if opcode.endswith(_CONSTANTS):
                large = isinstance(argument, int) and argument.bit_length() > _LARGEST
                stack.append(None if large else argument)
            case _:
                raise InputError(f"has the pickle opcode {opcode}, which torch.save does not write")


def read_pickle(file: IO[bytes] | Clipped, budget: Budget, references: list[Call] | None = None) -> Any:
    """What the pickle at this place of a file says, as numbers, strings, lists, tuples, dicts, Name and Call.

    references : gets every persistent reference in it, in their order.
    Raises InputError where it is too large, and any of Python's exceptions where the bytes are no pickle.
    """
    machine = _Machine(budget, [] if references is None else references)
    for opcode, argument in _opcodes(cast(IO[bytes], file)):
        if opcode == "STOP":
            break
        budget.draw()
        machine.step(opcode, argument)
    return machine.stack.pop()


def _opcodes(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The names of the opcodes with their arguments; texts of Python 2 are bytes, one a character."""
    while code := file.read(1):
        opcode = _BY_CODE[code.decode("latin1")]
        argument: Any = None
        if opcode.name == "STRING":  # which pickletools takes for ASCII
            argument = codecs.escape_decode(file.readline().strip()[1:-1])[0].decode("latin1")
        elif opcode.arg:
            argument = opcode.arg.reader(file)
        yield opcode.name, argument
    raise ValueError("the pickle has no end")


class Clipped:
    """A file for ``read_pickle``, of which no more is read than there is: an opcode may claim gigabytes."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        """So many bytes, or what is left."""
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def readline(self) -> bytes:
        """The rest of the line."""
        return self.file.readline(self.size)

    def tell(self) -> int:
        """The place in the file."""
        return self.file.tell()


def joined(name: str, key: object, budget: Budget) -> str:
    """The name of what is under ``key`` in ``name``; one long key above many others is paid for with each."""
    result = f"{name}.{key}" if name else str(key)
    budget.draw(size=len(result))
    if len(result) > _LONGEST_NAME:
        raise InputError(f"has a name of more than {_LONGEST_NAME} characters")
    return result


def _name(text: str) -> Name:
    """The class or function that is called "module name"."""
    return Name(text.replace(" ", ".", 1))


def _pairs(items: Sequence[Any], target: Any) -> Any:
    """Keys and values in turn, into a dict or an object; what is no plain key is of no use to us."""
    if isinstance(target, Call):
        target.items = {} if target.items is None else target.items
        target = target.items
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str | int | float):
                target[key] = value
    return target
