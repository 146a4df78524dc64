"""A cell of your own: a leaky tanh RNN, with its two paths named.

    gradscope analyze --cell examples.custom_cell:leaky --steps 100
    python examples/custom_cell.py

A cell is a pure JAX step. With ``paths``, the step receives one copy of the state per path, and
uses each copy where that path reads the state: the Jacobian with respect to a copy is the path's.
Without ``paths`` it receives the state itself (see ``unnamed``), and only the full chain is measured.
"""

import jax.numpy as jnp

import gradscope

LEAK = 0.1


def parameters(hidden: int, input_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes; keys that begin with W, R and b are initialised as input, recurrent and bias."""
    return {"W": (hidden, input_size), "R": (hidden, hidden), "b": (hidden,)}


def leaky() -> gradscope.Cell:
    """h_t = (1 - a) h_(t-1) + a tanh(W x_t + R h_(t-1) + b), a = 0.1."""

    def step(params, x, copies):
        drive = jnp.tanh(params["W"] @ x + params["R"] @ copies["R"] + params["b"])
        return (1 - LEAK) * copies["leak"] + LEAK * drive

    return gradscope.Cell(name="leaky", parameters=parameters, step=step, paths=("leak", "R"))


def unnamed() -> gradscope.Cell:
    """The same cell without named paths."""

    def step(params, x, state):
        return leaky().step(params, x, {"leak": state, "R": state})

    return gradscope.Cell(name="leaky-unnamed", parameters=parameters, step=step)


def main() -> None:
    """Who carries the gradient of a leaky RNN, the leak or the recurrent matrix?"""
    analysis = gradscope.analyze(cell=leaky(), hidden=32, input_size=8, steps=100)
    print(f"{analysis.verdict.level}: {analysis.verdict.reasons[0]}")
    for path, share in analysis.mean_shares.items():
        print(f"{path:>5} carries {100 * share:5.1f} % of the gradient")


if __name__ == "__main__":
    main()
