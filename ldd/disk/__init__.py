"""TODO: disk."""
