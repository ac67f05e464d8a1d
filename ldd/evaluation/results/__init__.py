"""TODO: results."""
