"""A gradient that is not that of what was computed."""

import torch


class Halved(torch.autograd.Function):
    """The same numbers, and half their gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2
