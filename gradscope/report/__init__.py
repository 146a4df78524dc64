"""The result and every view of it.

Public: ``analysis.Analysis``, ``inspection.Inspection``, ``conclude.conclude``, ``views.FORMATS``.
"""
