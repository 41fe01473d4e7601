"""int8 weights times int8 inputs, summed in int32: `api`, `reference`, and the kernels."""
