"""TensorFlow: names of its cells in a checkpoint, and pure functions that it differentiates."""
