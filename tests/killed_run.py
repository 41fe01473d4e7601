"""One resumable run as a program of its own, for tests that kill it: `killed_run.py cache output`.

Slow on purpose (`pause` seconds a linear), so that there is something to kill.
"""

import sys
import time

import jax
import numpy as np

from qlab.io.safetensors import save
from qlab.models.quantize import quantize_model
from qlab.models.surgery import linears
from qlab.qtensor import quantize
from tests.models_for_tests import CONFIG, random_model


def careful(w, stats, spec, *, pause=0.0):
    """Rounds after scaling by the inputs' largest values: depends on what calibration saw."""
    time.sleep(pause)
    scale = 1 + 0.05 * stats.amax / stats.amax.max()
    return quantize(w * scale, spec).replace(channel_scale=scale)


careful.propagate = "quantized"


def run(cache=None, pause=0.0, layers=4):
    import dataclasses

    model = random_model(dataclasses.replace(CONFIG, num_hidden_layers=layers))
    tokens = np.random.default_rng(0).integers(0, 320, (24, 32))
    settings = {"progress": False, "cache": cache, "pause": pause, "held_out": 0.25}
    return quantize_model(model, careful, "nf4_double", tokens, **settings)


if __name__ == "__main__":
    jax.block_until_ready(0)
    q = run(sys.argv[1], pause=0.05)
    assert len(linears(q)) == len(q.report.layers)
    save(q, sys.argv[2])
