"""qlab: a laboratory for LLM quantization in JAX."""
