"""A loop over time in a PyTorch module: followed from its operations, told apart into steps, run again."""
