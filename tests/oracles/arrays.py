"""Chains of given matrices as the compiled engine takes them."""

import numpy as np

from gradscope.compiled_svd.step_arrays import StepArrays
from gradscope.product_svd.steps import DenseSteps


class WholeSteps(DenseSteps):
    """A stack (T, m, m) in segments of so many steps."""

    def __init__(self, stack, length=None):
        super().__init__(np.asarray(stack, float))
        self.stack, self.length = np.asarray(stack, float), length or len(stack)
        self.starts = range(0, len(stack), self.length)

    def segment(self, i):
        return _Segment(self.stack[self.starts[i] :][: self.length])


class _Segment:
    def __init__(self, stack):
        self.step_arrays = StepArrays.whole(stack)


def mixed(rng, m, steps):
    """A small chain of some kind: well conditioned or not, sparse, near singular, widely scaled."""
    a = rng.normal(size=(steps, m, m)) * rng.choice([0.3, 1.0, 3.0]) / np.sqrt(m)
    kind = rng.integers(7)
    if kind == 1:
        a *= np.exp(rng.normal(size=(steps, m, 1)) * 3)
    elif kind == 2:
        a *= np.exp(rng.normal(size=(steps, 1, m)) * 3)
    elif kind == 3:
        a = np.linalg.qr(a)[0]
    elif kind == 4:
        a = np.eye(m) * rng.uniform(0.5, 1.1, (steps, 1, m)) + 1e-3 * a
    elif kind == 5:
        a[rng.integers(steps)] @= np.diag(10.0 ** -rng.uniform(0, 12, m))
    elif kind == 6:
        a *= rng.random((steps, m, m)) < 0.6
    return a
