"""TODO: experts."""
