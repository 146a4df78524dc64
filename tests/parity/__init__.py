"""A package, so that its files can share the models they make."""
