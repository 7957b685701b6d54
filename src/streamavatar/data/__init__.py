"""Training data: clips, and what training reads of them (latents, audio features, truth)."""
