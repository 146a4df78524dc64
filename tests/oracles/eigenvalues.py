"""Singular values of a product by the eigenvalues of its Gram matrix, in as many digits as they span."""

import math

import flint
import numpy as np


def log10_singular_values(jacobians, decades):
    """log10 of the eigenvalues of P^T P, half of them, in enough digits for ``decades`` of range."""
    precision, flint.ctx.prec = flint.ctx.prec, int(2 * decades * math.log2(10)) + 300
    try:
        product = flint.arb_mat(np.eye(jacobians.shape[1]).tolist())
        for jacobian in jacobians:
            product = flint.arb_mat(jacobian.tolist()) * product
        eigenvalues = flint.acb_mat(product.transpose() * product).eig(algorithm="approx")
        logs = [float(e.real.mid().log() / flint.arb(10).log()) / 2 for e in eigenvalues]
    finally:
        flint.ctx.prec = precision
    return np.array(sorted(logs, reverse=True))
