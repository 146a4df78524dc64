"""Recurrent cells and layers of a user's own for Keras, on any of its backends."""

from __future__ import annotations

import warnings

import keras

L, ops = keras.layers, keras.ops


def saved(model, path):
    """The file of a model, of its weights alone by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    return path


@keras.saving.register_keras_serializable("own")
class Normed(L.LSTMCell):
    """A subclass of Keras' with equations of its own: the gates are normalised."""

    def build(self, shape):
        super().build(shape)
        self.gamma = self.add_weight(shape=(4 * self.units,), initializer="ones", name="gamma")

    def call(self, inputs, states, training=False):
        h, c = states
        gates = ops.normalize(inputs @ self.kernel + h @ self.recurrent_kernel + self.bias) * self.gamma
        i, f, z, o = ops.split(gates, 4, axis=1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(z)
        h = ops.sigmoid(o) * ops.tanh(c)
        return h, [h, c]


@keras.saving.register_keras_serializable("own")
class Leaky(L.Layer):
    """A cell of no class of Keras': h = a h + tanh(U x + R h), of one state that is no list."""

    def __init__(self, units, rate=0.5, **options):
        super().__init__(**options)
        self.state_size, self.rate = units, rate

    def build(self, shape):
        self.U = self.add_weight(shape=(shape[-1], self.state_size), name="U")
        self.R = self.add_weight(shape=(self.state_size, self.state_size), name="R")
        self.built = True

    def get_config(self):
        return {**super().get_config(), "units": self.state_size, "rate": self.rate}

    def call(self, x, states):
        h = states[0] if isinstance(states, list | tuple) else states
        h = self.rate * h + ops.tanh(ops.matmul(x, self.U) + ops.matmul(h, self.R))
        return h, h


@keras.saving.register_keras_serializable("own")
class Parts(L.Layer):
    """A cell of layers: two states of unlike sizes, a LayerNormalization, a Dropout; it puts out a sum."""

    def __init__(self, units, memory, **options):
        super().__init__(**options)
        self.state_size, self.output_size = [units, memory], units
        self.inner, self.outer = L.Dense(memory, name="inner"), L.Dense(units, name="outer")
        self.norm, self.drop = L.LayerNormalization(name="norm"), L.Dropout(0.5)

    def build(self, shape):
        h, c = self.state_size
        self.inner.build((None, shape[-1] + h))
        self.outer.build((None, c + h))
        self.norm.build((None, c))
        self.built = True

    def get_config(self):
        units, memory = self.state_size
        return {**super().get_config(), "units": units, "memory": memory}

    def call(self, x, states, training=False):
        h, c = states
        c = self.norm(0.5 * c + self.inner(ops.concatenate([x, h], axis=-1)))
        h = ops.tanh(self.outer(ops.concatenate([self.drop(c, training=training), h], axis=-1)))
        return h + 1.0, [h, c]


@keras.saving.register_keras_serializable("own")
class Noisy(Leaky):
    """Random in use too."""

    def call(self, x, states):
        h, _ = super().call(x, states)
        h = h + keras.random.normal(h.shape, seed=self.seeds)
        return h, h

    def build(self, shape):
        super().build(shape)
        self.seeds = keras.random.SeedGenerator(1)


class Thrice(L.LSTM):
    """An LSTM with a loop of its own, which leaves out what its cell says of every third step."""

    def inner_loop(self, sequences, initial_state, mask, training=False):
        return super().inner_loop(sequences[:, ::3], initial_state, mask, training=training)


class Loop(keras.Model):
    """A loop of the user's own over a cell, which may read what it put out."""

    def __init__(self, cell, *, forecasts=False):
        super().__init__()
        self.cell, self.dense, self.forecasts = cell, L.Dense(3), forecasts

    def call(self, x):
        state, step = [ops.zeros((len(x), self.cell.state_size))], x[:, 0]
        for t in range(x.shape[1]):
            out, state = self.cell(step if self.forecasts else x[:, t], state)
            state, step = [state], self.dense(out)
        return out
