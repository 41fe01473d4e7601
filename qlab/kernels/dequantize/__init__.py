"""Packed weights to an array: `api`, `reference`, and the kernels."""
