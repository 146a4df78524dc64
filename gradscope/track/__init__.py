"""Checkpoints as rows: what is asked of each, what is kept of it, and what it reads like."""
