"""The graded chain and its norm at every lag as one compiled program, batched, on any device.

Public: ``engine.compiled_spectra``, which leaves what it is not sure of to ``product_svd``.
"""
