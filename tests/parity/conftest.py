"""Comparisons with PyTorch, Keras, Flax, Equinox and ONNX: ``pytest -m parity``, with the extra ``parity``."""

import os

os.environ["KERAS_BACKEND"] = "jax"


def pytest_itemcollected(item):
    item.add_marker("parity")
