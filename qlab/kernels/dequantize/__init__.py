"""Packed weights to an array: `api`, `reference`, `pallas_tpu`."""
