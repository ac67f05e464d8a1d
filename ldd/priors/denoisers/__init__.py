"""TODO: denoisers."""
