"""Mesh, logical axis rules, process start-up."""
