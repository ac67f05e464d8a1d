"""TODO: distiller."""
