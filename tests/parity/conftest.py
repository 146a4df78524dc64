"""Comparisons with PyTorch, Keras, Flax, Equinox and ONNX: ``pytest -m parity``, extra ``parity``."""

import os

os.environ["KERAS_BACKEND"] = "jax"


def pytest_itemcollected(item):
    item.add_marker("parity")
