"""ImageNet-1K: its classes in the standard order, and published subsets of them."""
