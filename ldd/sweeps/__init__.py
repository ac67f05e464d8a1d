"""TODO: sweeps."""
