"""TODO: baselines."""
