"""Embedders, neighbour search, and the pairs of related documents."""
