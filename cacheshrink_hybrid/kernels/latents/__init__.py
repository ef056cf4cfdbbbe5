"""Operations on rows of latents."""
