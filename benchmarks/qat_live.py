"""Records the run that the widget `qat_live` shows before anybody presses start: `tiny`, its first
settings, one phase; writes qlab/data/qat_live.json.

    python benchmarks/qat_live.py
"""

from __future__ import annotations

import json
from pathlib import Path

import qlab
from qlab.io.atomic import atomic_file
from qlab.widgets.qat_live_data import FILE, QatLiveState, qat_live_data, to_json
from qlab.widgets.qat_training import Training
from qlab.widgets.source import Source

TO = Path(qlab.__file__).parent / "data" / FILE


def main() -> None:
    source, state = Source(qlab.load("tiny")), QatLiveState()
    training = Training(source.model, lambda: None)
    training.start(state.choice)
    training.wait()
    if training.now.error is not None:
        raise training.now.error
    kept = to_json(qat_live_data(source, training.now, state), state)
    with atomic_file(TO, overwrite=True) as sink:
        sink.write((json.dumps(kept) + "\n").encode())
    print(f"{TO}: {training.now.phases[-1].losses[-1]:.3f} nats")


if __name__ == "__main__":
    main()
