"""Priors compared on one's own data: what their samples teach and look like, and what a step through each costs."""
