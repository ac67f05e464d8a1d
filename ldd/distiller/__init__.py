"""The distiller: `codes -> diffusion -> decode -> augment -> match -> step`, and what a run says of itself."""
