"""Measured speed: of a model with its weights (`model`), and of the full size with weights drawn at random (`full`)."""
