"""Expert trajectories: networks trained on the core-set, and their weights after every epoch."""
