"""TODO: prior."""
