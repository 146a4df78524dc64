"""Limits on what was measured: budgets, baselines, what has changed; over analyses, it knows no cells."""
