"""A driven cell along its trajectory: states, one-step Jacobians, tangent maps.

Public: ``system.System``, ``jacobian_chain.JacobianChain``, ``tangent_chain.TangentChain``.
"""
