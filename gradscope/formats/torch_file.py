"""PyTorch's own files (``.pt``, ``.pth``, ``.bin``, ``.ckpt``, any pickle), read without PyTorch.

State dicts, whole modules and the programs of torch.jit, in today's archives and in the format before
PyTorch 1.6. Classes are names and code is text: nothing in a file is run.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from gradscope.custom_types import PathLike
from gradscope.errors import InputError, quoted, shown
from gradscope.formats.budget import Budget
from gradscope.formats.content import is_pickle
from gradscope.formats.pickles import Call, Name, read_pickle
from gradscope.formats.tensors import Tensor, Tensors, members, opened
from gradscope.formats.torch_tree import COMPILED, Tree, rebuilt, tree_of
from gradscope.formats.torch_views import SAVE, Embedded, Storage, Storages, check_order, read_old, view

# Of the code of a compiled class: what it keeps as constants.
_CONSTANT = re.compile(r"^  (\w+) : Final\[\w+\] = (\S+)$", re.M)
# What a traced RNN, which has no constants, calls.
_CALLED = re.compile(r"torch\.(?:rnn_)?(tanh|relu)\(")
_CODE = 2**20
_START = 512


class Saved(dict[str, Tensor]):
    """The tensors of a PyTorch file by name, and what else it says.

    tree : the objects that they are in; module : class and attributes of the module of a name in the model.
    """

    def __init__(self, tensors: Tensors, tree: Tree, module: Callable[[str], Module | None]) -> None:
        super().__init__(tensors)
        self.tree, self.module = tree, module

    def facts(self, path: str) -> Mapping[str, Any]:
        """The attributes of the module of this name, as far as the file has them."""
        module = self.module(path)
        return module.attributes if module else {}


@dataclass(frozen=True)
class Module:
    """A module as a file has it: its class, such as ``torch.nn.modules.rnn.LSTM``, and its attributes."""

    kind: str
    attributes: Mapping[str, Any]


@contextmanager
def open_torch(path: PathLike, max_size: int | None = None) -> Iterator[Saved]:
    """The tensors of a state dict, a module or a compiled program by name, wherever in the file they are.

    max_size : bytes the tensors may have together, by default a small multiple of the file's size.
    """
    with opened(path, "PyTorch", max_size) as (file, budget):
        start = file.read(_START)
        archived = start[:2] == b"PK" and zipfile.is_zipfile(file)
        file.seek(0)
        if archived:
            with zipfile.ZipFile(file) as archive:
                yield _from_zip(archive, budget)
        elif is_pickle(start):
            yield _saved(*read_old(file, budget.size, budget), budget)
        else:
            raise InputError(f"is no PyTorch file, or damaged: {SAVE}")


def _from_zip(archive: zipfile.ZipFile, budget: Budget) -> Saved:
    found = {member.filename: member for member in members(archive, budget)}
    roots = [name.removesuffix("data.pkl") for name in found if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if len(roots) != 1:
        raise InputError(f"holds {len(roots)} state dicts (data.pkl), expected one: {SAVE}")
    root = roots[0]
    ours = {name: m for name, m in found.items() if name.startswith((f"{root}data.pkl", f"{root}data/"))}
    if any(member.compress_type != zipfile.ZIP_STORED for member in ours.values()):
        raise InputError(f"is compressed, which PyTorch does not do: {SAVE}")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in found else b"little"
    check_order(order == b"little")
    storages = {n.removeprefix(f"{root}data/"): _in_zip(archive, member) for n, member in ours.items()}
    whole = read_pickle(io.BytesIO(archive.read(f"{root}data.pkl")), budget)
    return _saved(whole, storages, budget, cache(partial(_constants, archive, f"{root}code/", budget)))


def _in_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Storage:
    def read(start: int, count: int) -> bytes:
        with archive.open(member) as file:
            file.seek(start)
            return file.read(count)

    return Storage(member.file_size, read)


def _saved(
    whole: Any,
    storages: Storages,
    budget: Budget,
    constants: Callable[[str], Mapping[str, Any]] = lambda _: {},
) -> Saved:
    """The tensors in the objects of a file, checked to lie in its storages."""
    tree = tree_of(whole, budget)
    if not tree.tensors.keys() - {""}:
        raise InputError(f"holds {_in_words(whole)}, expected a state dict: {SAVE}")
    embedded = Embedded(budget)
    views = {
        name: view(call, storages, embedded, f"tensor {quoted(name)}") for name, call in tree.tensors.items()
    }
    budget.unpack(sum(one.size for one in views.values()))
    tensors = {name: Tensor(one.called, partial(one.load, budget), one.size) for name, one in views.items()}

    def module(path: str) -> Module | None:
        there = tree.modules.get(path)
        if there is None:
            return None
        kind = re.sub(r"___torch_mangle_\d+\.", "", there.function).removeprefix(COMPILED)
        plain = {k: v for k, v in there.state.items() if isinstance(v, str | int | float)}
        return Module(kind, {**constants(there.function), **plain})

    return Saved(tensors, tree, module)


def _constants(archive: zipfile.ZipFile, folder: str, budget: Budget, kind: str) -> dict[str, Any]:
    """What the code of a compiled class keeps as constants; it is read as text."""
    module, _, name = kind.rpartition(".")
    try:
        with archive.open(f"{folder}{module.replace('.', '/')}.py") as file:
            text = file.read(_CODE).decode()
            budget.draw(size=4 * len(text))  # a class of many has it again
    except KeyError:  # not a compiled program
        return {}
    _, _, code = text.partition(f"class {name}(Module):\n")
    code = code.partition("\nclass ")[0]
    found = {key: _literal(value) for key, value in _CONSTANT.findall(code)}
    called = set(_CALLED.findall(code))
    return {"nonlinearity": called.pop(), **found} if len(called) == 1 else found


def _literal(text: str) -> Any:
    """A word or a number of a program."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text)
    except ValueError:
        return text.strip('"')


def _in_words(value: Any) -> str:
    """What a file holds in place of a dict of tensors."""
    if rebuilt(value):
        return "a single tensor"
    if isinstance(value, Call | Name):
        return f"a Python object {shown((value.function if isinstance(value, Call) else value.text)[:80])}"
    return "a list" if isinstance(value, list | tuple) else "no tensors"
