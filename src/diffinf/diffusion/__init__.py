"""The latent diffusion autoencoder: a first stage, a semantic code, a conditional denoiser, and exact-as-possible inversion."""
