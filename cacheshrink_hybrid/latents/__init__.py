"""What attention remembers: a latent per token, and the attention that reads it."""
