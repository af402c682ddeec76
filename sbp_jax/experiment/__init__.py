"""Controlled experiments: arms, controls and sweeps, trained alike in one process."""
