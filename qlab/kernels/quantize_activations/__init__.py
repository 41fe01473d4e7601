"""Activations to int8 or FP8, a scale a token: `api`, `reference`, and the kernels."""
