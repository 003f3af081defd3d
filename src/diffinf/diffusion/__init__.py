"""The latent diffusion autoencoder: first stage, semantic code, conditional denoiser, inversion."""
