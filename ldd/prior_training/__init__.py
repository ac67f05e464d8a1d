"""TODO: prior_training."""
