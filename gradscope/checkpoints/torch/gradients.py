"""Whether a recurrent module that puts out what torch's does has torch's derivatives too.

A ``detach``, a ``Function`` of the user's own or a hook on a gradient changes no number of the forward pass.
So the derivative of a random sum of all that a module puts out by all that it reads, through its steps as
they are in the model, is compared with that of torch's own forward with the same weights. What it reads
counts as given: the way back through the rest of the model is cut.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from gradscope.checkpoints.torch.calls import eps_of
from gradscope.checkpoints.torch.told import OWN
from gradscope.errors import reason

# Times what one rounding of every input moves, the largest of so many draws.
_SAFETY, _DRAWS = 8.0, 3
_UNSEEN = "whether anything holds gradients back in it could not be seen: {}"
_UNLIKE = (
    "puts out what torch's own does with its weights and has other derivatives: by what it reads they are "
    "{:.2g} apart, of {:.2g}, and rounding explains {:.2g}: a detach, a torch.no_grad, a hook on a gradient "
    "or a Function of its own changes them"
)
_NO_GRAD = "it runs without gradients (torch.no_grad, or a checkpoint that runs it again)"


@dataclass(frozen=True)
class Doubt:
    """Of a module's derivatives: that they are others than torch's, or why that was not seen; "" if not."""

    unlike: str = ""
    unseen: str = ""


@dataclass
class Pulled:
    """The calls of one module in a forward pass.

    given : what each read, cut out of the rest of the model; states : what each was given besides; weights,
    sums : of its outputs, at random, and the sum of these times those; eps : of the
    coarsest numbers that it reads or puts out (torch.autocast puts out others than it reads).
    """

    module: Any
    given: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    sums: list[Any] = field(default_factory=list)
    eps: float = 0.0
    unseen: str = ""
    over: bool = False  # a checkpoint runs again what derivatives are taken of

    def before(self, _: Any, args: Any, keywords: Any) -> tuple[Any, Any] | None:
        """The hook before a call, after those of the user: what it reads is a tensor of its own."""
        torch = importlib.import_module("torch")
        inputs = args[0] if args else keywords.get("input")
        if not torch.is_grad_enabled() or not hasattr(inputs, "detach") or not inputs.is_floating_point():
            self.unseen = self.unseen or (_NO_GRAD if hasattr(inputs, "detach") else "it reads no tensor")
            return None
        if inputs.requires_grad:
            cut = inputs.view_as(inputs)
            cut.register_hook(torch.zeros_like)
            own = cut.view_as(cut)
        else:
            own = inputs.view_as(inputs).requires_grad_()
        if not self.over:
            self.given.append(own)
            self.states.append(args[1] if len(args) > 1 else keywords.get("hx"))
        return ((own, *args[1:]), keywords) if args else (args, {**keywords, "input": own})

    def after(self, output: Any) -> None:
        """The hook after a call."""
        torch = importlib.import_module("torch")
        out = output[0] if isinstance(output, tuple) else output
        if self.unseen or not hasattr(out, "detach"):
            return
        generator = torch.Generator().manual_seed(0)  # the same where a checkpoint runs it again
        weights = torch.randn(out.shape, generator=generator).to(out)
        total = (out * weights).sum()
        self.eps = max(self.eps, *map(eps_of, (out, *self.given[-1:])))
        if not self.over and len(self.weights) < len(self.given):
            self.weights.append(weights)
            self.sums.append(total)

    def doubt(self) -> Doubt:
        """What is to be said of the derivatives, after the forward pass; gradients must be enabled."""
        torch = importlib.import_module("torch")
        self.over = True
        base = next((kind for kind in type(self.module).__mro__ if kind.__module__ == OWN), None)
        if base is None or not self.given or self.unseen or len(self.sums) != len(self.given):
            return Doubt(unseen=_UNSEEN.format(self.unseen) if self.unseen else "")
        try:
            total = sum(self.sums)
            theirs = _by(total, self.given) if total.requires_grad else [*map(torch.zeros_like, self.given)]
            generator = torch.Generator().manual_seed(0)
            ours, *shaken = [self._plainly(base, draw) for draw in [None, *[generator] * _DRAWS]]
        except Exception as error:  # of what the user's code has done to the graph
            return Doubt(unseen=_UNSEEN.format(f"{type(error).__name__}: {reason(error)}"))
        for their, our, *moved in zip(theirs, ours, *shaken, strict=True):
            size = float(our.abs().max())
            unit = self.eps * max(size, float(their.abs().max()))
            explained = _SAFETY * (max(float((one - our).abs().max()) for one in moved) + unit)
            gap = float((their - our).abs().max())
            if gap > explained:  # and not where either is no number
                return Doubt(_UNLIKE.format(gap, size, explained))
        return Doubt()

    def _plainly(self, base: Any, generator: Any) -> list[Any]:
        """The same derivative of torch's own forward, of inputs shaken by a rounding with a generator."""
        torch = importlib.import_module("torch")
        total, given, state = 0.0, [], _apart(self.states[0])
        for inputs, weights in zip(self.given, self.weights, strict=True):
            own = inputs.detach().clone()
            if generator is not None:
                signs = torch.randint(0, 2, own.shape, generator=generator).to(own) * 2 - 1
                own = own * (1 + self.eps * signs)
            given.append(own.requires_grad_())
            found = base.forward(self.module, own, state)
            cell = not isinstance(found, tuple) or base.__name__.endswith("Cell")
            state = found if cell else found[1]
            total = total + ((found[0] if isinstance(found, tuple) else found) * weights).sum()
        return _by(total, given)


def _apart(state: Any) -> Any:
    """A state that no gradient goes through."""
    if state is None or hasattr(state, "detach"):
        return None if state is None else state.detach()
    return tuple(part.detach() for part in state)


def _by(total: Any, given: list[Any]) -> list[Any]:
    torch = importlib.import_module("torch")
    found = torch.autograd.grad(total, given, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(one) if gradient is None else gradient
        for one, gradient in zip(given, found, strict=True)
    ]
