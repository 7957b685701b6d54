"""Training losses: pure functions of predictions."""
