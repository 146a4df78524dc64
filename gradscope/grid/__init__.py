"""Settings over a grid: its axes, its points as rows, where theory expects the rate to be zero."""
