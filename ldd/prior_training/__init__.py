"""Training a class-conditional latent diffusion prior on one's own images.

To be read in this order: `module` (both phases), `architectures` (the networks), `losses`, `latents` (images encoded
once), `pictures` (samples on the way), `writing` (the folder at the end).
"""
