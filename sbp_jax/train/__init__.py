"""Optimizer, loss, step, loop and metrics."""
