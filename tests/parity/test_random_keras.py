"""Random small models of Keras: each is analysed right, or refused by a reason; there is no third outcome."""

from __future__ import annotations

import warnings

import jax
import keras
import numpy as np
import pytest
from oracles.keras_cells import Leaky, Noisy, Normed, Parts

import gradscope
from gradscope.errors import InputError

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers
STEPS, SIZE = 6, 3
DRAWS = [0, 1, 2, *(pytest.param(k, marks=pytest.mark.slow) for k in range(3, 24))]
FOUND = [978]  # each was once neither right nor refused by a reason


@keras.saving.register_keras_serializable("drawn")
class Own(L.GRU):
    """A layer of another's own."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return super().call(1.5 * sequences, initial_state, mask, training)


FRONTS = {
    "dense": lambda: L.Dense(SIZE, activation="tanh"),
    "distributed": lambda: L.TimeDistributed(L.Dense(SIZE)),
    "conv": lambda: L.Conv1D(SIZE, 3, padding="same"),
    "relu": lambda: L.Activation("relu"),
    "normalised": lambda: L.LayerNormalization(),
}
NOTHING = {
    "dropout": lambda: L.Dropout(0.4),
    "noise": lambda: L.GaussianNoise(0.3),
    "linear": lambda: L.Activation("linear"),
    "spatial": lambda: L.SpatialDropout1D(0.2),
}
CELLS = {
    "LSTM": lambda **o: L.LSTM(SIZE, **o),
    "GRU": lambda **o: L.GRU(SIZE, **o),
    "reset before": lambda **o: L.GRU(SIZE, reset_after=False, **o),
    "SimpleRNN": lambda **o: L.SimpleRNN(SIZE, **o),
    "relu": lambda **o: L.SimpleRNN(SIZE, activation="relu", **o),
    "hard": lambda **o: L.LSTM(SIZE, recurrent_activation="hard_sigmoid", **o),
    "own": lambda **o: Own(SIZE, **o),
    "normed": lambda use_bias, **o: L.RNN(Normed(SIZE), **o),
    "leaky": lambda use_bias, **o: L.RNN(Leaky(SIZE), **o),
    "parts": lambda use_bias, **o: L.RNN(Parts(SIZE, 2), **o),
    "stacked": lambda use_bias, **o: L.RNN([L.LSTMCell(SIZE, use_bias=use_bias), Normed(SIZE)], **o),
    "noisy": lambda use_bias, **o: L.RNN(Noisy(SIZE), **o),
}
SHARES = [0.17, 0.17, 0.09, 0.11, 0.08, 0.05, 0.06, 0.08, 0.06, 0.06, 0.05, 0.02]


def drawn(seed):
    """A model, what it is given, and the options that say what that is."""
    rng = np.random.default_rng(seed)
    pick = lambda table: table[rng.choice(list(table))]()  # noqa: E731
    tokens, masked = rng.random() < 0.4, rng.random() < 0.5
    layers = [L.Embedding(5, SIZE, mask_zero=masked, name="words")] if tokens else []
    layers += [L.Masking(0.0)] if masked and not tokens else []
    layers += [pick(FRONTS)] if rng.random() < 0.3 else []
    count = int(rng.integers(1, 4))
    for number in range(count):
        layers += [pick(NOTHING)] if rng.random() < 0.4 else []
        options = {"return_sequences": number < count - 1 or rng.random() < 0.5, "name": f"layer_{number}"}
        kind = rng.choice(list(CELLS), p=SHARES)
        both, turned = rng.random() < 0.3, rng.random() < 0.1
        layer = CELLS[kind](**options, use_bias=rng.random() < 0.8, go_backwards=turned and not both)
        if both:
            mode = rng.choice(["concat", "sum"], p=[0.8, 0.2])
            layer = L.Bidirectional(layer, merge_mode=mode, name=f"both_{number}")
        layers.append(layer)
        layers += [pick(FRONTS)] if rng.random() < 0.15 and number < count - 1 else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Sequential(
            [
                keras.Input((STEPS,) if tokens else (STEPS, SIZE), dtype="int32" if tokens else "float32"),
                *layers,
            ]
        )
    for weight in model.trainable_variables:
        weight.assign(rng.standard_normal(weight.shape) * 0.6)
    given = rng.integers(1, 5, (2, STEPS)) if tokens else rng.standard_normal((2, STEPS, SIZE))
    if masked:
        given[0, : rng.integers(0, 3)] = 0
        given[:, 4:] = 0
    return model, given, {"embedding": "words"} if tokens else {}


def keras_gains(layer, x, mask):
    """log10 sigma_1 of d(last state)/d(first state) of a Keras layer, of every sequence, by jax."""
    again = type(layer).from_config(
        {**layer.get_config(), "return_state": True, "return_sequences": False, "name": "again"}
    )
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    values = [v.value for v in again.trainable_variables], [v.value for v in again.non_trainable_variables]
    kinds = again.get_initial_state(len(x))
    sizes = [part.shape[1] for part in keras.tree.flatten(kinds)]

    @jax.jit
    def last(state):
        states = jax.numpy.split(state, np.cumsum(sizes)[:-1], axis=1)
        states = keras.tree.pack_sequence_as(kinds, states)
        (_, *states), _ = again.stateless_call(*values, x, initial_state=states, mask=mask)
        return jax.numpy.concatenate(keras.tree.flatten(states), axis=1)

    jacobian = np.asarray(jax.jit(jax.jacobian(last))(jax.numpy.zeros((len(x), sum(sizes))))).astype(float)
    with np.errstate(divide="ignore"):  # relu may let nothing through
        return [np.log10(np.linalg.norm(jacobian[k, :, k], 2)) for k in range(len(x))]


def read_by(model, given):
    """What every recurrent layer of Keras reads, and its mask, as Keras runs them one after the other."""
    found, value, mask = {}, keras.ops.convert_to_tensor(given), None
    for layer in model.layers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = (np.asarray(value), None if mask is None else np.asarray(mask))
            takes = {"mask": mask} if isinstance(layer, L.RNN | L.Bidirectional) else {}
            value, old = layer(value, **takes), value
            mask = layer.compute_mask(old, mask) if layer.supports_masking else None
        parts = [layer.forward_layer, layer.backward_layer] if isinstance(layer, L.Bidirectional) else [layer]
        found |= {part.name: (part, *before) for part in parts if isinstance(part, L.RNN)}
    return found


REASONS = (
    "which gradscope does not compute",
    "for which gradscope has no",
    "is no layer of Keras' own",
    "which the inputs do not tell",
    "masked differently",
    "puts out something else than cell",
    "sequences that are not alike",
    "draws random numbers",
    "holds no recurrent layer",
    "holds no LSTM, GRU or SimpleRNN",
    "for which gradscope has no",
)


def asked(checkpoint, **options):
    """The analysis, or why it is refused; checkpoint : gives it."""
    try:
        return gradscope.analyze(checkpoint=checkpoint(), **options), ""
    except InputError as error:
        return None, str(error)


def outcome(seed, folder):
    """Whether a drawn model is refused, "right" where not and Keras says the same; else AssertionError."""
    model, given, options = drawn(seed)
    noisy = any(isinstance(cell, Noisy) for cell in model._flatten_layers())
    found = "right"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder / "x.keras")
    ways = [(lambda: folder / "x.keras", {"inputs": given, **options})]
    ways += [(lambda: gradscope.from_keras(model), {"inputs": given, **options})]
    ways += [(lambda: gradscope.from_keras(model, given), {})]
    for checkpoint, how in ways:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analysis, refusal = asked(checkpoint, **how)
        if analysis is None:
            found = "refused" if not how else "refused without a batch"
            assert any(reason in refusal for reason in REASONS), refusal
            assert noisy or "draws random numbers" not in refusal
            continue
        read = read_by(model, given)
        for one in analysis.layers or (analysis,):
            layer, x, mask = read[one.problem["layer"].rpartition("/")[2]]
            ours = [spectrum.log10_singular_values[0] for spectrum in one.full.spectra]
            theirs = keras_gains(layer, x, mask)
            close = np.isclose(ours, theirs, rtol=0, atol=1e-3) | (np.array(theirs) < -6)
            assert close.all(), (one.problem["layer"], ours, theirs)
    return found


@pytest.mark.parametrize("seed", [*DRAWS, *FOUND])
def test_right_or_refused(seed, tmp_path):
    assert outcome(seed, tmp_path)
