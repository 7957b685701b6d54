"""Networks: single-device code that knows nothing of training, sessions or files."""
