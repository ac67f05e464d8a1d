"""TODO: runtime."""
