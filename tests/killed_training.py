"""One training run as a program of its own, for tests that kill it: `killed_training.py folder
output`. Slow on purpose, so that there is something to kill."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from qlab.io.safetensors import save
from qlab.models.qat import qat
from tests.models_for_tests import random_model

TEXT = np.random.default_rng(0).integers(0, 320, (20, 17))


def run(folder=None, pause=0.0, steps=12, **settings):
    def wait(*_):
        time.sleep(pause)

    how = {"method": "lsq", "steps": steps, "every": 3, "batch": 4, "progress": False, **settings}
    text = how.pop("text", TEXT)
    callback = wait if pause else None
    return qat(
        random_model(scale=2.0), "int4_g32", text, checkpoint=folder, callback=callback, **how
    )


if __name__ == "__main__":
    q = run(sys.argv[1], pause=0.15)
    Path(sys.argv[2] + ".json").write_text(json.dumps(q.label.provenance["loss"]["steps"]))
    save(q, sys.argv[2])
