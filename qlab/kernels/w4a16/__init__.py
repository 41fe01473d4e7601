"""Weights of 4 or 8 bits times inputs of 16 or 32: `api`, `reference`, and the kernels."""
