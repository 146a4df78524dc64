"""Models written by their own frameworks: the same layers, the same outputs, the same Jacobians."""

from __future__ import annotations

import itertools
import warnings

import flax.linen
import jax
import keras
import numpy as np
import pytest
import torch
from flax import nnx, serialization
from safetensors.numpy import save_file

import gradscope
from gradscope import checkpoints
from gradscope.errors import InputError
from gradscope.trajectory import forward

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")

HIDDEN, INPUT, STEPS = 4, 3, 7


def outputs(layer, x):
    """h_1 ... h_T of a layer on x (T, d), in the order in which the layer reads them, in float64."""
    x = x[::-1] if layer.direction == "backward" else x
    with jax.enable_x64(True):
        states = np.asarray(forward(layer.cell, layer.parameters, jax.numpy.asarray(x), layer.state))
    return states[1:, -layer.hidden :]


def sequence(features=INPUT, seed=3):
    return np.random.default_rng(seed).standard_normal((STEPS, features))


def log10_values(jacobian):
    return np.log10(np.linalg.svd(np.asarray(jacobian, np.float64), compute_uv=False))


def check_spectrum(path, jacobian, **choice):
    """Singular values of d(last state)/d(first state) are those of the framework's own Jacobian.

    Over few steps, or the framework's product of float64 has no digits left of the smallest.
    """
    analysis = gradscope.analyze(checkpoint=path, **choice)
    ours = analysis.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(ours, log10_values(jacobian), rtol=0, atol=1e-6)


# PyTorch

TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def torch_jacobian(module, x, layer=0, backward=False):
    """d(c_T, h_T)/d(c_0, h_0) of one layer and direction by autograd."""
    sides = 2 if module.bidirectional else 1
    index, count = layer * sides + backward, module.num_layers * sides
    parts = 2 if isinstance(module, torch.nn.LSTM) else 1

    def run(state):
        zeros = torch.zeros(count, module.hidden_size, dtype=torch.float64)
        filled = [torch.cat([zeros[:index], s[None], zeros[index + 1 :]]) for s in state.chunk(parts)]
        given = tuple(filled[::-1]) if parts == 2 else filled[0]
        last = module(torch.as_tensor(x), given)[1]
        last = [last[1], last[0]] if parts == 2 else [last]
        return torch.cat([part[index] for part in last])

    start = torch.zeros(parts * module.hidden_size, dtype=torch.float64)
    return torch.autograd.functional.jacobian(run, start).numpy()


def torch_wrappers():
    def nested(key):
        return lambda state: {"epoch": 3, key: state, "optimizer": {"state": {0: {"step": torch.ones(2)}}}}

    def prefixed(prefix):
        return lambda state: {prefix + name: value for name, value in state.items()}

    yield from ((key, nested(key), "") for key in ("state_dict", "model_state_dict", "model"))
    for prefix in ("module.", "_orig_mod.", "model.", "_forward_module.", "module._orig_mod.encoder.lstm."):
        yield prefix, prefixed(prefix), prefix.rstrip(".")


@pytest.mark.parametrize(
    ("wrap", "name"), [w[1:] for w in torch_wrappers()], ids=[w[0] for w in torch_wrappers()]
)
def test_torch_state_dicts_wherever_they_are(wrap, name, tmp_path):
    torch.manual_seed(0)
    module = torch.nn.LSTM(INPUT, HIDDEN, dtype=torch.float64)
    torch.save(wrap(module.state_dict()), tmp_path / "x.pt")
    layer = checkpoints.read(tmp_path / "x.pt")
    assert layer.name == name
    expected = module(torch.as_tensor(sequence()))[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", TORCH)
def test_torch_stack_of_two_in_both_directions(kind, bias, suffix, tmp_path):
    torch.manual_seed(1)
    module = TORCH[kind](INPUT, HIDDEN, num_layers=2, bidirectional=True, bias=bias, dtype=torch.float64)
    path = tmp_path / f"model{suffix}"
    state = {f"enc.{name}": value for name, value in module.state_dict().items()}
    save_file({k: v.numpy() for k, v in state.items()}, path) if suffix == ".safetensors" else torch.save(
        state, path
    )
    found = checkpoints.read_all(path).layers
    assert [layer.name for layer in found] == ["enc.l0", "enc.l0_reverse", "enc.l1", "enc.l1_reverse"]
    assert [layer.depth for layer in found] == [0, 0, 1, 1]
    cell = "rnn" if kind == "rnn" else None
    layers = {layer.name: checkpoints.read(path, cell, layer=layer.name) for layer in found}
    x = sequence()
    both = module(torch.as_tensor(x))[0].detach().numpy()
    below = both_directions(layers["enc.l0"], layers["enc.l0_reverse"], x)
    ours = both_directions(layers["enc.l1"], layers["enc.l1_reverse"], below)
    np.testing.assert_allclose(ours, both, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "bias"), [("lstm", True), ("gru", False), ("rnn", True)])
def test_torch_jacobians_of_a_stack(kind, bias, tmp_path):
    torch.manual_seed(1)
    module = TORCH[kind](INPUT, HIDDEN, num_layers=2, bidirectional=True, bias=bias, dtype=torch.float64)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    x, cell = sequence()[:2], "rnn" if kind == "rnn" else None
    first = [checkpoints.read(tmp_path / "x.pt", cell, layer=name) for name in ("l0", "l0_reverse")]
    inputs = x, both_directions(*first, x)
    for depth, backward in ((0, True), (1, False), (1, True)):
        choice = {"cell": cell, "layer": f"l{depth}" + "_reverse" * backward, "inputs": inputs[depth]}
        check_spectrum(tmp_path / "x.pt", torch_jacobian(module, x, depth, backward), **choice)


def both_directions(forward_layer, backward_layer, x):
    assert (forward_layer.direction, backward_layer.direction) == ("forward", "backward")
    return np.concatenate([outputs(forward_layer, x), outputs(backward_layer, x)[::-1]], axis=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", TORCH)
def test_torch_file_in_lower_precision_is_read_exactly(kind, dtype, tmp_path):
    torch.manual_seed(2)
    module = TORCH[kind](INPUT, HIDDEN, dtype=dtype)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    layer = checkpoints.read(tmp_path / "x.pt", "rnn" if kind == "rnn" else None)
    assert layer.dtype == str(dtype).removeprefix("torch.")
    expected = module.double()(torch.as_tensor(sequence()))[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence()), expected, rtol=0, atol=1e-12)


def test_torch_parameters_buffers_and_views(tmp_path):
    """Parameters as such, a transposed and an expanded tensor, and numbers that are none of ours."""
    torch.manual_seed(3)
    module = torch.nn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    state = dict(module.named_parameters())
    state["weight_hh_l0"] = state["weight_hh_l0"].detach().T.contiguous().T
    state["bias_hh_l0"] = torch.tensor(0.25, dtype=torch.float64).expand(3 * HIDDEN)
    with torch.no_grad():
        module.bias_hh_l0.copy_(state["bias_hh_l0"])
    state |= {"phase": torch.zeros(2, dtype=torch.complex64), "ids": torch.arange(3), "loss": np.float64(1.5)}
    torch.save(state, tmp_path / "x.pt")
    layer = checkpoints.read(tmp_path / "x.pt")
    expected = module(torch.as_tensor(sequence()))[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_torch_file_with_another_pickle_protocol(protocol, tmp_path):
    module = torch.nn.LSTM(INPUT, HIDDEN)
    torch.save(module.state_dict(), tmp_path / "x.pt", pickle_protocol=protocol)
    np.testing.assert_array_equal(
        checkpoints.read(tmp_path / "x.pt").parameters["R_i"], module.weight_hh_l0[:HIDDEN].detach().double()
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("how", ["old", "parametrization", "all at once", "columns"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_torch_weight_norm(how, suffix, tmp_path):
    torch.manual_seed(4)
    module = torch.nn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    dim = {"all at once": None, "columns": 1}.get(how, 0)
    norm = torch.nn.utils.weight_norm if how == "old" else torch.nn.utils.parametrizations.weight_norm
    for name in ("weight_hh_l0", "weight_ih_l0"):
        norm(module, name, dim=dim)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.mul_(1.3)
    path = tmp_path / f"x{suffix}"
    state = {name: value.detach() for name, value in module.state_dict().items()}
    torch.save(state, path) if suffix == ".pt" else save_file({k: v.numpy() for k, v in state.items()}, path)
    layer = checkpoints.read(path)
    expected = module(torch.as_tensor(sequence()))[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence()), expected, rtol=0, atol=1e-12)


def test_torch_projection_is_listed_and_refused(tmp_path):
    torch.save(torch.nn.LSTM(INPUT, HIDDEN, proj_size=2).state_dict(), tmp_path / "x.pt")
    (found,) = checkpoints.read_all(tmp_path / "x.pt").layers
    assert (found.label, found.sizes) == ("projected lstm", (HIDDEN, INPUT))
    with pytest.raises(InputError, match="an LSTM with a projection"):
        checkpoints.read(tmp_path / "x.pt")


# Keras


def keras_model(*layers):
    """A model with weights and biases away from their initial values."""
    model = keras.Sequential([keras.Input((STEPS, INPUT)), *layers])
    rng = np.random.default_rng(5)
    model.set_weights([rng.standard_normal(w.shape) * 0.5 for w in model.get_weights()])
    return model


def keras_saved(model, folder, suffix):
    path = folder / f"model{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    return path


def keras_jacobian(layer, x):
    """d(last state)/d(first state) of a Keras layer by jax, the state as (c, h)."""
    cell, n = layer.cell, layer.cell.units
    parts = 2 if isinstance(cell, keras.layers.LSTMCell) else 1
    variables = [v.value for v in cell.trainable_variables]
    others = [v.value for v in cell.non_trainable_variables]

    def run(state):
        states = [part[None] for part in reversed(jax.numpy.split(state, parts))]
        for step in x[::-1] if layer.go_backwards else x:
            (_, states), _ = cell.stateless_call(variables, others, jax.numpy.asarray(step[None]), states)
        return jax.numpy.concatenate([part[0] for part in reversed(states)])

    return jax.jacobian(run)(jax.numpy.zeros(parts * n))


KERAS = {
    "lstm": (keras.layers.LSTM, {}),
    "gru": (keras.layers.GRU, {}),
    "gru-reset-before": (keras.layers.GRU, {"reset_after": False}),
    "rnn": (keras.layers.SimpleRNN, {}),
    "rnn-relu": (keras.layers.SimpleRNN, {"activation": "relu"}),
    "rnn-sigmoid": (keras.layers.SimpleRNN, {"activation": "sigmoid"}),
    "linear": (keras.layers.SimpleRNN, {"activation": None}),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize(("bias", "reverse"), [(True, False), (False, True)])
@pytest.mark.parametrize("name", KERAS)
def test_keras_layer(name, bias, reverse, suffix, tmp_path):
    make, options = KERAS[name]
    layer = make(HIDDEN, return_sequences=True, use_bias=bias, go_backwards=reverse, name="mine", **options)
    model = keras_model(layer)
    path = keras_saved(model, tmp_path, suffix)
    ours = checkpoints.read(path, name if suffix == ".weights.h5" else None)
    assert (ours.cell.name, ours.name, ours.dtype) == (name, "mine", "float32")
    if suffix == ".weights.h5" and reverse:
        return  # which the weights alone do not say
    assert ours.direction == ("backward" if reverse else "forward")
    x = sequence().astype(np.float32)
    expected = np.asarray(model(x[None]))[0]
    np.testing.assert_allclose(outputs(ours, x.astype(float)), expected, rtol=0, atol=2e-6)


@pytest.fixture
def double_precision(monkeypatch):
    """Keras computes in float64: upon JAX it rounds every tanh to float32 otherwise."""
    monkeypatch.setitem(keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")


@pytest.mark.parametrize("name", ["lstm", "gru", "gru-reset-before", "rnn"])
@pytest.mark.usefixtures("double_precision")
def test_keras_jacobian(name, tmp_path):
    make, options = KERAS[name]
    with jax.enable_x64(True):
        layer = make(HIDDEN, dtype="float64", go_backwards=name == "gru", **options)
        path = keras_saved(keras_model(layer), tmp_path, ".keras")
        jacobian = keras_jacobian(layer, sequence()[:2])
    check_spectrum(path, jacobian, inputs=sequence()[:2])


def test_keras_bidirectional_stack(tmp_path):
    wrapped = keras.layers.LSTM(HIDDEN, return_sequences=True, name="inner")
    model = keras_model(
        keras.layers.Dense(5, activation="tanh"),
        keras.layers.Bidirectional(wrapped, name="both"),
        keras.layers.Bidirectional(
            keras.layers.GRU(HIDDEN, return_sequences=True, go_backwards=True),
            backward_layer=keras.layers.GRU(HIDDEN, return_sequences=True),
            name="odd",
        ),
    )
    x = sequence().astype(np.float32)
    states = [np.asarray(keras.Model(model.inputs[0], layer.output)(x[None]))[0] for layer in model.layers]
    for suffix in (".keras", ".h5"):
        path = keras_saved(model, tmp_path, suffix)
        first, second = ([f for f in checkpoints.read_all(path).layers if f.depth == d] for d in (0, 1))
        layers = {found.direction: found.settle() for found in first}
        ours = both_directions(layers["forward"], layers["backward"], states[0].astype(float))
        np.testing.assert_allclose(ours, states[1], rtol=0, atol=2e-6)
        odd = {found.direction: found.name for found in second}
        assert odd["backward"].startswith("odd/forward_")  # as it was asked to
        assert odd["forward"].startswith("odd/gru")
        with pytest.raises(InputError, match="reads what those below it put out, 8 features"):
            gradscope.analyze(checkpoint=path, layer=odd["forward"])


def test_keras_models_in_models_and_stacked_cells(tmp_path):
    cells = [keras.layers.LSTMCell(HIDDEN, name="a"), keras.layers.GRUCell(2, name="b")]
    inner = keras.Sequential([keras.layers.SimpleRNN(5, return_sequences=True, name="deep")], name="inner")
    model = keras_model(inner, keras.layers.RNN(cells, name="stack"))
    expected = [("inner/deep", "rnn", 0), ("stack/a", "lstm", 1), ("stack/b", "gru", 2)]
    path = keras_saved(model, tmp_path, ".keras")
    assert [(f.name, f.label, f.depth) for f in checkpoints.read_all(path).layers] == expected
    path = keras_saved(model, tmp_path, ".h5")
    assert [(f.label, f.depth) for f in checkpoints.read_all(path).layers] == [e[1:] for e in expected]


def test_keras_in_half_precision(tmp_path):
    for dtype in ("float16", "bfloat16"):
        model = keras_model(keras.layers.LSTM(HIDDEN, dtype=dtype, recurrent_initializer="zeros"))
        path = keras_saved(model, tmp_path, ".keras")
        layer = checkpoints.read(path)
        assert layer.dtype == dtype
        kernel = np.asarray(model.layers[0].cell.recurrent_kernel.value).astype(float)
        np.testing.assert_array_equal(layer.parameters["R_f"], kernel[:, HIDDEN : 2 * HIDDEN].T)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: keras.layers.LSTM(3, activation="relu"), "activation relu and recurrent activation sigmoid"),
        (
            lambda: keras.layers.GRU(3, recurrent_activation="hard_sigmoid"),
            "recurrent activation hard_sigmoid",
        ),
        (
            lambda: keras.layers.SimpleRNN(3, activation="gelu"),
            "activation gelu, for which gradscope has no rnn",
        ),
    ],
)
def test_keras_activations_without_a_cell(layer, words, tmp_path):
    path = keras_saved(keras_model(layer()), tmp_path, ".keras")
    (found,) = checkpoints.read_all(path).layers
    assert words in found.problem
    with pytest.raises(InputError, match=words):
        checkpoints.read(path)


def test_keras_weights_alone_leave_questions(tmp_path):
    def refusal(layer, **choice):
        path = keras_saved(keras_model(layer), tmp_path, ".weights.h5")
        with pytest.raises(InputError) as caught:
            checkpoints.read(path, **choice)
        return str(caught.value)

    rnn, lstm = keras.layers.SimpleRNN(3), keras.layers.LSTM(3)
    gru = keras.layers.GRU(3, use_bias=False)
    assert "add --activation tanh, relu, sigmoid or linear" in refusal(rnn)
    assert "add --cell lstm if they are tanh and sigmoid" in refusal(lstm)
    assert "add --cell gru or gru-reset-before" in refusal(gru)
    assert "add --cell gru or gru-reset-before" in refusal(gru, activation="tanh")
    assert "not --activation relu" in refusal(lstm, activation="relu")
    path = keras_saved(keras_model(rnn), tmp_path, ".weights.h5")
    for activation, cell in (("tanh", "rnn"), ("relu", "rnn-relu"), ("linear", "linear")):
        assert checkpoints.read(path, activation=activation).cell.name == cell


# Flax


class Linen(flax.linen.Module):
    """Every cell of linen, one upon the other, and a pair of directions."""

    @flax.linen.compact
    def __call__(self, x):
        nn, found = flax.linen, []
        for cell in (nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell):
            x = nn.RNN(cell(HIDDEN), name=None)(x)
            found.append(x)
        return nn.Dense(2)(x), found


class Nnx(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs):
        self.cells = nnx.List(
            nnx.RNN(cell(features, HIDDEN, rngs=rngs), rngs=rngs)
            for cell, features in zip(
                (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell),
                (INPUT, HIDDEN, HIDDEN, HIDDEN),
                strict=True,
            )
        )
        self.head = nnx.Linear(HIDDEN, 2, rngs=rngs)

    def __call__(self, x):
        return list(itertools.accumulate(self.cells, lambda y, cell: cell(y), initial=x))[1:]


def shaken(tree):
    """The tree with biases, which Flax starts at 0, away from there."""
    rng = np.random.default_rng(6)
    return jax.tree.map(lambda a: np.asarray(a) + 0.3 * rng.standard_normal(a.shape).astype(a.dtype), tree)


def flax_stored(tree, path):
    if path.suffix == ".msgpack":
        path.write_bytes(serialization.msgpack_serialize(tree))
        return path
    flat = {
        "/".join(map(str, keys)): np.asarray(v) for keys, v in flax.traverse_util.flatten_dict(tree).items()
    }
    np.savez(path, **flat) if path.suffix == ".npz" else save_file(flat, path)
    return path


FLAX_NAMES = {
    "linen": [f"params.{name}_0" for name in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")],
    "nnx": [f"cells.{k}.cell" for k in range(4)],
}


def flax_models():
    """The tree of parameters and the outputs of every layer, of linen and of nnx."""
    x = sequence().astype(np.float32)[None]
    linen = Linen()
    tree = shaken(linen.init(jax.random.key(0), x))
    yield "linen", tree, [np.asarray(y)[0] for y in linen.apply(tree, x)[1]]
    model = Nnx(nnx.Rngs(0))
    state = shaken(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    graph, empty, rest = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(empty, state)
    yield "nnx", state, [np.asarray(y)[0] for y in nnx.merge(graph, empty, rest)(x)]


@pytest.mark.parametrize("suffix", [".msgpack", ".npz", ".safetensors"])
def test_flax_cells(suffix, tmp_path):
    cells = ["lstm", "lstm", "gru", "rnn"]
    for library, tree, states in flax_models():
        path = flax_stored(tree, tmp_path / f"{library}{suffix}")
        below = sequence().astype(np.float32)
        for name, cell, expected in zip(FLAX_NAMES[library], cells, states, strict=True):
            name = name if suffix == ".msgpack" else name.replace(".", "/")
            layer = checkpoints.read(path, cell, layer=name)
            ours = outputs(layer, below.astype(float))
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
            with pytest.raises(InputError, match="activation functions are not in the file: "):
                checkpoints.read(path, layer=name)
            below = expected


@pytest.mark.parametrize("make", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_flax_jacobian(make, tmp_path):
    with jax.enable_x64(True):
        cell = make(INPUT, HIDDEN, rngs=nnx.Rngs(1), param_dtype=jax.numpy.float64, dtype=jax.numpy.float64)
        state = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
        parts = 2 if "LSTM" in make.__name__ else 1

        def run(start):
            carry = jax.numpy.split(start, parts) if parts == 2 else start
            carry = tuple(carry) if parts == 2 else carry
            for step in sequence()[:2]:
                carry, _ = cell(carry, step)
            return jax.numpy.concatenate(carry) if parts == 2 else carry

        jacobian = jax.jacobian(run)(jax.numpy.zeros(parts * HIDDEN))
        path = flax_stored(state, tmp_path / "x.msgpack")
    cell = {nnx.GRUCell: "gru", nnx.SimpleCell: "rnn"}.get(make, "lstm")
    check_spectrum(path, jacobian, cell=cell, inputs=sequence()[:2])


def test_flax_bidirectional_and_half_precision(tmp_path):
    rngs = nnx.Rngs(2)
    pair = (nnx.RNN(nnx.GRUCell(INPUT, HIDDEN, rngs=rngs), rngs=rngs) for _ in "ab")
    model = nnx.Bidirectional(*pair, rngs=rngs)
    state = shaken(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    state = jax.tree.map(lambda a: a.astype(jax.numpy.bfloat16), state)
    path = flax_stored(state, tmp_path / "x.msgpack")
    layers = [checkpoints.read(path, "gru", layer=f"{side}_rnn.cell") for side in ("forward", "backward")]
    assert layers[0].dtype == "bfloat16"
    graph, empty, rest = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(empty, jax.tree.map(lambda a: a.astype(np.float32), state))
    expected = np.asarray(nnx.merge(graph, empty, rest)(sequence().astype(np.float32)[None]))[0]
    np.testing.assert_allclose(both_directions(*layers, sequence()), expected, rtol=0, atol=2e-6)
