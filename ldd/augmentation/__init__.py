"""Augmentation: differentiable and shared by two batches, random views of each image, small affine changes."""
