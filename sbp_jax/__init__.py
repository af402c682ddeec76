"""Synthetic Bootstrapped Pretraining in JAX."""
