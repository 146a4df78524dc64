"""PyTorch: names in a state dict, modules in memory, and the steps of modules that have no equations here."""
