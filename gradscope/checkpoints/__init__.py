"""Trained recurrent layers: a module for each library turns the names of its tensors into layers.

Public: ``read``, ``read_all``, ``Layer``, ``Model``, and ``from_torch`` and its like.
"""

from gradscope.checkpoints.choosing import Decided, Model, by_derivatives, choose
from gradscope.checkpoints.found import ACTIVATIONS, Contents, Found, Named, holder_of
from gradscope.checkpoints.layer import Layer
from gradscope.checkpoints.live import Live
from gradscope.checkpoints.reading import contents_of, read, read_all
from gradscope.checkpoints.recording import Recorded, Recording

__all__ = [
    "ACTIVATIONS",
    "Contents",
    "Decided",
    "Found",
    "Layer",
    "Live",
    "Model",
    "Named",
    "Recorded",
    "Recording",
    "by_derivatives",
    "choose",
    "contents_of",
    "holder_of",
    "read",
    "read_all",
]
