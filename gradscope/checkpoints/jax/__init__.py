"""Flax and Equinox: names in a tree, modules in memory, and steps that JAX differentiates."""
