"""TODO: imagenet."""
