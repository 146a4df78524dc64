"""Keras: files and their configs, models in memory, and the steps of cells that have no equations here."""
