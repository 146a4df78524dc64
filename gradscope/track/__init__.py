"""Rows of many checkpoints: measured one by one, kept in files that only grow, dealt out, merged."""
