"""Held-out loss of a checkpoint."""
