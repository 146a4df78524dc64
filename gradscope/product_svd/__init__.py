"""Singular values of a long product of matrices, in log scale, with an error; no JAX.

Public: ``spectrum.spectrum``, ``spectrum.Spectrum``, ``spectrum.top_spectra``.
"""
