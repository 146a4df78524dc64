"""Clipped and truncated gradients are those that torch, Keras and optax leave."""

import numpy as np
import optax
import pytest
import torch

import gradscope
from gradscope.measure.adjoints import Total
from gradscope.measure.clipping import clipped
from gradscope.problem.clip import clip_of

B, T, N, K = 2, 10, 3, 4
GATES = "ifzo"


class Model(torch.nn.Module):
    """Two layers, whose cells a loop may detach; ``state`` is a list of (h, c)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.lstm = torch.nn.LSTM(2, N, num_layers=2, batch_first=True, dtype=torch.float64)

    def losses(self, x, at, detached):
        """The sum of the outputs at these steps, with the state detached before some."""
        state, total = None, 0.0
        for t in range(x.shape[1]):
            if t in detached and state is not None:
                state = tuple(part.detach() for part in state)
            y, state = self.lstm(x[:, t : t + 1], state)
            if t in at:
                total = total + y.sum()
        return total

    def gradients(self, x, at=(T - 1,), detached=()):
        self.zero_grad()
        self.losses(x, at, detached).backward()
        return [p.grad.clone() for p in self.parameters()]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    made = Model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 2
    torch.save(made.state_dict(), folder / "model.pt")
    return made, folder / "model.pt", np.random.default_rng(3).standard_normal((B, T, 2))


def size(arrays):
    return float(np.sqrt(sum((np.asarray(a) ** 2).sum() for a in arrays)))


def cosine(ones, others):
    inner = sum((np.asarray(a) * np.asarray(b)).sum() for a, b in zip(ones, others, strict=True))
    return inner / size(ones) / size(others)


@pytest.mark.parametrize(
    ("law", "clip"),
    [
        ("norm:0.3", lambda p: torch.nn.utils.clip_grad_norm_(p, 0.3)),
        ("value:0.05", lambda p: torch.nn.utils.clip_grad_value_(p, 0.05)),
        ("norm:1e9", lambda p: torch.nn.utils.clip_grad_norm_(p, 1e9)),
    ],
)
def test_torch_clips_so(law, clip, model):
    """Over all parameters of a stack, both biases of every layer among them."""
    made, file, x = model
    found = gradscope.analyze(checkpoint=file, inputs=x, adjoint=np.ones(N), clip=law).loss.clip
    for b in (*range(B), None):
        before = made.gradients(torch.tensor(x if b is None else x[b : b + 1]))
        clip(made.parameters())
        after = [p.grad for p in made.parameters()]
        expected = np.log10(size(before)), size(after) / size(before), cosine(before, after)
        if b is None:
            mine = tuple(found.batch[name] for name in ("log10_norm", "factor", "cosine"))
        else:
            mine = found.log10_norm[b], found.factor[b], found.cosine[b]
        assert mine == pytest.approx(expected, rel=1e-9)
    assert found.proportion == ("1e9" not in law)


@pytest.mark.parametrize("every", [False, True])
def test_torch_truncates_so(every, model):
    """A loss at the last step sees K steps; a loop that detaches every K steps sees its chunk."""
    made, file, x = model
    adjoint = np.ones((B, T, N) if every else N)
    found = gradscope.analyze(checkpoint=file, inputs=x, adjoint=adjoint, tbptt=K).loss.tbptt
    given = torch.tensor(x)
    at = range(T) if every else (T - 1,)

    def recurrent(gradients):
        names = [name for name, _ in made.named_parameters()]
        return [g for name, g in zip(names, gradients, strict=True) if "weight_hh" in name]

    whole = recurrent(made.gradients(given, at))

    def of(truncated):
        return size(w - t for w, t in zip(whole, truncated, strict=True)) / size(whole), cosine(
            whole, truncated
        )

    chunked = recurrent(made.gradients(given, at, detached=range(0, T, K)))
    assert found.chunks["R"] == pytest.approx(of(chunked), rel=1e-9)
    each = [recurrent(made.gradients(given, (t,), detached=(t - K + 1,))) for t in at]
    assert found.at("R") == pytest.approx(of([sum(parts) for parts in zip(*each, strict=True)]), rel=1e-9)


@pytest.mark.parametrize(
    ("option", "threshold"), [("clipnorm", 0.3), ("global_clipnorm", 0.3), ("clipvalue", 0.1)]
)
def test_keras_clips_so(option, threshold):
    """It has the gates of a layer in one variable."""
    import keras

    gates, gradient = drawn()
    together = [np.concatenate([gates[f"{kind}_{gate}"] for gate in GATES]) for kind in "WRb"]
    optimizer = keras.optimizers.SGD(**{option: threshold})
    after = optimizer._clip_gradients([keras.ops.convert_to_tensor(one) for one in together])
    check(clipped(gradient, clip_of(f"keras-{option}:{threshold}")), together, map(np.asarray, after))


@pytest.mark.parametrize(("name", "threshold"), [("clip_by_global_norm", 0.3), ("clip", 0.1)])
def test_optax_clips_so(name, threshold):
    gates, gradient = drawn()
    after, _ = getattr(optax, name)(threshold).update(gates, optax.EmptyState())
    check(
        clipped(gradient, clip_of(f"optax-{name}:{threshold}")),
        gates.values(),
        (after[name] for name in gates),
    )


def drawn():
    """A gradient by the parameters of an LSTM."""
    rng = np.random.default_rng(0)
    shapes = {"W": (N, 2), "R": (N, N), "b": (N,)}
    gates = {f"{k}_{g}": rng.normal(size=shapes[k]).astype("float32") / 4 for k in shapes for g in GATES}
    total = Total(gates)
    total.add(gates, 0)
    return gates, total


def check(found, before, after):
    before, after = [np.asarray(one) for one in before], [np.asarray(one) for one in after]
    assert found.log10_norm == pytest.approx(np.log10(size(before)))
    assert found.acts
    assert found.factor == pytest.approx(size(after) / size(before), rel=1e-6)
    assert found.cosine == pytest.approx(cosine(before, after), rel=1e-6)
