"""What torch computes within: products with a module's matrices, and slopes with all their digits."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Functions that multiply a matrix with what may depend on the state, by their names.
_PRODUCTS = {
    "linear",
    "matmul",
    "__matmul__",
    "__rmatmul__",
    "mm",
    "mv",
    "bmm",
    "einsum",
    "tensordot",
    "inner",
}
_PRODUCTS |= {"conv1d", "conv2d", "conv3d"}
# Cells in one function, of which the parts are not seen.
_CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
_SQUASHED = {"tanh": "tanh", "sigmoid": "sigmoid", "special_expit": "sigmoid"}


@dataclass(frozen=True)
class Product:
    """A product with a matrix of the module.

    matrix : its name; made : the product, as it depends on what came before; read : a leaf of the same value,
        which is what the module goes on with.
    """

    matrix: str
    made: Any
    read: Any


def watching(matrices: Mapping[int, str], *, cut: bool = True) -> Any:
    """A context in which torch's slopes keep their digits, and what depends on a product is cut off from it.

    Torch takes 1 - tanh^2 and s (1 - s), which lose digits as a unit saturates. Its ``products`` are those
    with a matrix, or with what is made of one, that depend on what requires a gradient.

    matrices : {id of a parameter or buffer: its name, "" of what is none}; cut : whether products are cut, or
        stay as they are.
    """
    torch = importlib.import_module("torch")
    overrides = importlib.import_module("torch.overrides")

    class Watching(overrides.TorchFunctionMode):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.products: list[Product] = []
            self._made_of = {key: (name, None) for key, name in matrices.items()}

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(function, "__name__", "")
            args, kwargs = _unwrapped(args), {key: _unwrapped(value) for key, value in (kwargs or {}).items()}
            if name in _CELLS:
                with self:
                    return _CELL[name](torch, *args, **kwargs)
            if name in ("addmm", "addmv") and _differs(args[0]):
                with self:
                    return _sum(torch, name, *args, **kwargs)
            if name in _SQUASHED and not kwargs and _differs(args[0]):
                return _squashed(torch, _SQUASHED[name], args[0])
            result = function(*args, **kwargs)
            return self._noted(name, (*args, *kwargs.values()), result)

        def _noted(self, name: str, args: Any, result: Any) -> Any:
            """The result; what is made of parameters alone is one of them, a product with a matrix is cut."""
            tensors = _tensors(args)
            own = [self._made_of[id(tensor)][0] for tensor in tensors if id(tensor) in self._made_of]
            matrix = next(filter(None, own), "")
            if own and len(own) == len(tensors):
                self._made_of |= {id(one): (matrix, one) for one in _tensors(result)}
            elif matrix and cut and name in _PRODUCTS and _differs(result):
                read = result.detach().requires_grad_()
                self.products.append(Product(matrix, result, read))
                return read
            return result

    return Watching()


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if hasattr(value, "requires_grad") else []


def _unwrapped(value: Any) -> Any:
    """Arguments with tensors in place of Keras' variables, which would unwrap themselves unseen."""
    if isinstance(value, tuple):
        return tuple(map(_unwrapped, value))
    return value.value if hasattr(value, "value") and hasattr(value, "overwrite_with_gradient") else value


def _differs(value: Any) -> bool:
    return bool(getattr(value, "requires_grad", False))


def _squashed(torch: Any, name: str, value: Any) -> Any:
    """Tanh or sigmoid with the slope from the pre-activation: sech^2, or s(a) s(-a)."""
    with torch.no_grad():
        made = getattr(torch, name)(value)
        other = torch.sigmoid(-2 * value.abs()) if name == "tanh" else torch.sigmoid(-value)
        slope = 4 * other * (1 - other) if name == "tanh" else made * other
        held = value.detach()
    return made + slope * (value - held)


def _sum(torch: Any, name: str, base: Any, one: Any, other: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """Torch's addmm and addmv, the product apart from what is added."""
    product = getattr(torch, name.removeprefix("add"))(one, other)
    return beta * base + alpha * product


def _both(torch: Any, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> tuple[Any, Any]:
    linear = torch.nn.functional.linear
    return linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)


def _lstm_cell(
    torch: Any, x: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> tuple[Any, Any]:
    h, c = hx
    one, other = _both(torch, x, h, w_ih, w_hh, b_ih, b_hh)
    i, f, z, o = (one + other).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_cell(torch: Any, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
    (r, z, n), (h_r, h_z, h_n) = (part.chunk(3, -1) for part in _both(torch, x, h, w_ih, w_hh, b_ih, b_hh))
    r, z = torch.sigmoid(r + h_r), z + h_z
    n = torch.tanh(n + r * h_n)
    return torch.sigmoid(-z) * n + torch.sigmoid(z) * h


def _rnn_cell(
    squash: str, torch: Any, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Any:
    one, other = _both(torch, x, h, w_ih, w_hh, b_ih, b_hh)
    return getattr(torch, squash)(one + other)


_CELL: dict[str, Callable[..., Any]] = {
    "lstm_cell": _lstm_cell,
    "gru_cell": _gru_cell,
    "rnn_tanh_cell": lambda *given: _rnn_cell("tanh", *given),
    "rnn_relu_cell": lambda *given: _rnn_cell("relu", *given),
}
