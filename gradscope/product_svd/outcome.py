"""What a pass over a chain found."""

from __future__ import annotations

import numpy as np

from gradscope.product_svd import log_scale
from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.jacobi_svd import decomposed


class Outcome:
    """What a pass over the chain found, once it is finished.

    lags : (T,) log10 norms, where they were asked for; lost : values that are not zero by their structure and
    not known either; error, norm_error : estimates for all log10 values and for the first, once compared;
    lag_errors : (T,) of the norms, NaN where none was made;
    suspect : whether a pivot may have been noise; noisy : whether one was, and its value is lost.
    """

    lost = 0

    def __init__(self) -> None:
        self.error = self.norm_error = 0.0
        self.suspect = self.noisy = False
        self.lags = self.lag_errors = np.zeros(0)

    def finish(self, graded: Graded, *, vectors: bool = True) -> None:
        """Values of the whole product, and its top vectors where they are wanted."""
        graded = decomposed(graded, pairs=int(vectors))
        held = graded.mantissa > 0  # what underflowed on the way is lost, not zero
        self.suspect |= not held.all()
        self.log10 = log_scale.log10(graded.mantissa[held], graded.exponent[held])
        nothing = graded.rank == 0 or not vectors
        self.left = np.zeros(graded.x.shape[1]) if nothing else graded.x[0]
        self.right = np.zeros(graded.y.shape[1]) if nothing else graded.y[0]
