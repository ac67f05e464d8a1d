"""Sweeps: a recipe over named settings and seeds, its cells run side by side, one table and one plot of them."""
