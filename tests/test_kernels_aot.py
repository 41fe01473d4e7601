"""Rung 3: every TPU kernel passes the TPU's own compiler, without a TPU. Off unless `-m aot`."""

import json
import subprocess
import sys

import pytest

from benchmarks import kernels_aot

pytestmark = pytest.mark.aot


@pytest.mark.parametrize("name", kernels_aot.TOPOLOGIES)
def test_compiles_within_memory(name):
    if not kernels_aot.available():
        pytest.skip(kernels_aot.MISSING)
    command = [sys.executable, "-m", "benchmarks.kernels_aot", name]
    done = subprocess.run(command, text=True, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert len(rows) >= 20
    for row in rows:
        assert row["bundles"] > 50, row
        assert row["vmem_bytes"] < 16 * 2**20, row  # what a TPU v5e grants a kernel unasked
