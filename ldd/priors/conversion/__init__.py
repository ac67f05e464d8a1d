"""Original (CompVis) latent-diffusion checkpoints as prior folders: settings, names of tensors, pickles."""
