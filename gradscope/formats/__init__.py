"""Array files from strangers as named tensors, sizes first and nothing run.

Public: ``reading.open_tensors``, ``reading.read_array``, ``tensors.Tensor``.
"""
