"""Every sequence measured: spectra of all paths, shares, the gradient of a loss.

Public: ``batch.measure_batch``, ``measured.Measured``, ``loss.loss_gradient``.
"""
