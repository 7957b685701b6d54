"""Training: a small trainer, one method per stage, checkpoints that survive a kill at any point."""
