"""Weights in llama.cpp's Q4_K super-blocks, kept packed: `api`, `reference`, and the kernels."""
