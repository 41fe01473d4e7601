"""Rung 3: every kernel passes the compiler of its own machine, without the machine. Off unless
`-m aot`; the tests of TPUs need libtpu, those of Hopper the CUDA plugin and ptxas.
"""

import json
import subprocess
import sys

import pytest

from benchmarks import kernels_aot, kernels_hopper

pytestmark = pytest.mark.aot


@pytest.mark.parametrize("name", kernels_aot.TOPOLOGIES)
def test_tpu_kernels_compile_within_memory(name):
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


def test_hopper_kernels_compile_without_spills():
    reason = kernels_hopper.missing()
    if reason:
        pytest.skip(reason)
    rows = kernels_hopper.run()["rows"]
    ops = {row["kernel"].split()[0] for row in rows}
    assert ops == {"w4a16", "w8a8", "fp8", "q4_k", "dequantize", "quantize_activations"}
    for row in rows:
        assert row["spilled_bytes"] == 0, row
        assert not row["serialized"], row  # products that wait for each other
        assert row["registers"] <= 255 and row["shared_bytes"] <= kernels_hopper.SHARED, row
        assert row["resident"] >= 1, row
