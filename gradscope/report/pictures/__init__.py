"""The pictures of an analysis: pure functions from its JSON to SVG, with nothing but NumPy."""
