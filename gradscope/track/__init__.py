"""Checkpoints, and analyses that are held to budgets, as rows: what is asked, what is kept, how it reads."""
