"""TODO: students."""
