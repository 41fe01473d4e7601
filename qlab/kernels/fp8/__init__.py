"""FP8 weights times FP8 inputs, scales a row or a block: `api`, `reference`, and the kernels."""
